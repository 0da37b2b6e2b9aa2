//! Every sampler, with and without corrections of exposure bias.

use super::support::{assert_says, cpu, job, tiny, trained, with};
use ddpm_ip::config::{Config, ConfigError};
use ddpm_ip::diffusion::{Diffusion, Reverse, StepInputs, StepOutputs};
use ddpm_ip::net::network::{Classifier, Network, Unet};
use ddpm_ip::net::{Engine, Parameters, Spec};
use ddpm_ip::npz::{Npz, NpzWriter};
use ddpm_ip::sample::{self, Chain, Draws, Guide, Model, Seeded, Subjects, Walk};
use ddpm_ip::{Error, Outcome};
use ddpm_math::{Domain, Stream};
use std::sync::atomic::AtomicBool;

/// The settings of each sampler, and whether it adds noise.
const SAMPLERS: [(&[(&str, &str)], bool); 8] = [
    (&[("sampler", "ddpm")], true),
    (&[("sampler", "ddim")], false),
    (&[("sampler", "ddim"), ("eta", "1")], true),
    (&[("sampler", "dpm-solver++")], false),
    (&[("sampler", "dpm-solver++-sde")], true),
    (&[("sampler", "unipc")], false),
    (&[("sampler", "heun")], false),
    (&[("sampler", "heun"), ("churn", "2")], true),
];

/// The tiny run with other settings, sampled in 5 steps.
fn five_steps(settings: &[&[(&str, &str)]]) -> Config {
    let steps: &[(&str, &str)] = &[("sample.timestep_respacing", "5"), ("spacing", "karras")];
    with(&[&[steps], settings].concat().concat())
}

/// Parameters that are drawn, so that the answers depend on all that a network is given.
fn drawn<N: Network>(network: &N) -> Parameters {
    let one = |(i, spec): (usize, &Spec)| -> Vec<f32> {
        let scale = (spec.shape[0] as f32 / spec.len() as f32).sqrt();
        normal(spec.len(), i as u64).iter().map(|v| v * scale).collect()
    };
    let values: Vec<Vec<f32>> = network.specs().iter().enumerate().map(one).collect();
    Parameters::from_values(network.layout(), &values)
}

fn normal(count: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream::new(5, Domain::Noise, index, 0).fill_normal(&mut values);
    values
}

/// A network with drawn parameters, to be sampled by any settings.
struct Sampled {
    network: Engine<Unet>,
    parameters: Parameters,
    guide: Option<Guide>,
}

impl Sampled {
    fn new(config: &Config) -> Self {
        let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
        let parameters = drawn(&network);
        Self { network: Engine::new(network, cpu()), parameters, guide: None }
    }

    /// What `make` makes of a chain that samples as the settings say.
    fn chain<R>(&self, config: &Config, make: impl FnOnce(&Chain) -> R) -> R {
        config.validate().unwrap();
        make(&Chain {
            diffusion: &Diffusion::for_sampling(&config.diffusion, &config.sample).unwrap(),
            network: &Model { network: &self.network, parameters: &self.parameters, size: [8; 2] },
            reverse: &Reverse::new(&config.sample),
            guide: self.guide.as_ref(),
            guidance: None,
            shape: [1, 8, 8],
        })
    }

    /// Some images `[N, C, H, W]`.
    fn draw(&self, config: &Config, images: &[u64], labels: Option<&[u32]>, low_res: Option<&[f32]>) -> Vec<f32> {
        let subjects = Subjects { images, labels, low_res, draws: &Seeded(0) };
        let drawn = self.chain(config, |chain| chain.run(subjects, |_, _, _| true)).unwrap();
        assert!(drawn.len() == images.len() * 64 && drawn.iter().all(|v| v.is_finite()));
        drawn
    }
}

#[test]
fn neutral_corrections_change_no_bit_with_any_sampler() {
    let sampled = Sampled::new(&tiny());
    for (sampler, noisy) in SAMPLERS {
        let draw = |text: &str| sampled.draw(&five_steps(&[sampler, &[("correct", text)]]), &[0, 1], None, None);
        let plain = draw("");
        let mut pairs = vec![
            ("es:1", "es:1.1"),
            ("es-linear:0,1", "es-linear:0.1,1"),
            ("shift:0", "shift:2"),
            ("time-shift:0,1", "time-shift:6,1"),
            ("dcw:low,0", "dcw:low,0.1"),
            ("dcw:high,0,constant", "dcw:high,0.1,constant"),
            ("dcw:double,0,0", "dcw:double,0.1,0.1"),
            ("dcw:pixel,0", "dcw:pixel,0.1"),
            ("ideal-ip:0", "ideal-ip:0.5"),
            ("es:1; shift:0; time-shift:0,1; dcw:double,0,0; ideal-ip:0", "es:1.1; shift:2"),
        ];
        if sampler[0].1 == "ddim" {
            pairs.push(("time-shift-released:0,1", "time-shift-released:6,1"));
        }
        if sampler[0].1 == "heun" {
            pairs.push(("es-euler:1", "es-euler:1.1"));
        }
        if noisy {
            pairs.push(("noise:1", "noise:1.1"));
        }
        for (neutral, other) in pairs {
            assert!(draw(neutral) == plain, "{sampler:?}, {neutral}");
            assert!(draw(other) != plain, "{sampler:?}, {other}");
        }
    }
}

#[test]
fn an_image_depends_neither_on_the_batch_nor_on_threads_when_its_variance_is_looked_at() {
    let sampled = Sampled::new(&tiny());
    let threads = [1, 3].map(|n| rayon::ThreadPoolBuilder::new().num_threads(n).build().unwrap());
    for (sampler, _) in SAMPLERS {
        for text in ["time-shift:6,1; dcw:double,0.1,0.1; ideal-ip:0.2", "time-shift-released:6,1"] {
            if text.contains("released") && sampler[0].1 != "ddim" {
                continue;
            }
            let config = five_steps(&[sampler, &[("correct", text)]]);
            let together = sampled.draw(&config, &[0, 1, 2, 3, 4], None, None);
            for pool in &threads {
                let alone = |image: u64| pool.install(|| sampled.draw(&config, &[image], None, None));
                assert!((0..5).map(alone).collect::<Vec<_>>().concat() == together, "{sampler:?}, {text}");
                let at_once = pool.install(|| sampled.draw(&config, &[0, 1, 2, 3, 4], None, None));
                assert!(at_once == together, "{sampler:?}, {text}");
            }
        }
    }
}

#[test]
fn every_sampler_listens_to_classes_classifiers_and_small_images() {
    let mut config = with(&[("class_cond", "true")]);
    config.model.num_classes = 10;
    let with_classes = Sampled::new(&config);
    let superres = Sampled::new(&with(&[("arch", "superres"), ("small_size", "4")]));
    let mut guided = Sampled::new(&tiny());
    let classifier = [("classifier.width", "32"), ("classifier.depth", "1"), ("classifier.channel_mult", "1")];
    let more = [("classifier.attention_resolutions", ""), ("classifier.num_head_channels", "16")];
    let mut config = with(&[&classifier[..], &more].concat());
    config.classifier.num_classes = 10;
    let classifier = Classifier::new(config.classifier_network().unwrap());
    let parameters = drawn(&classifier);
    guided.guide = Some(Guide::new(Engine::new(classifier, cpu()), parameters, 5.0));
    for (sampler, _) in SAMPLERS {
        for correct in ["", "es:1.1; shift:1; time-shift:6,1; dcw:low,0.1; ideal-ip:0.2"] {
            let mut config = five_steps(&[sampler, &[("correct", correct), ("class_cond", "true")]]);
            config.model.num_classes = 10;
            let draw = |sampled: &Sampled, labels| sampled.draw(&config, &[0, 0], labels, None);
            for sampled in [&with_classes, &guided] {
                let drawn = draw(sampled, Some(&[3, 7]));
                assert!(drawn[..64] != drawn[64..], "{sampler:?}, {correct}");
                assert!(drawn[64..] == draw(sampled, Some(&[7, 7]))[64..], "{sampler:?}, {correct}");
            }
            let config = five_steps(&[sampler, &[("correct", correct), ("arch", "superres"), ("small_size", "4")]]);
            let small = [normal(64, 800), normal(64, 801)].concat();
            let drawn = superres.draw(&config, &[0, 0], None, Some(&small));
            assert!(drawn[..64] != drawn[64..], "{sampler:?}, {correct}");
        }
    }
}

/// x̂_0 as the last call of the first step predicts it.
fn x_start_of_first_step(chain: &Chain, mut x: Vec<f32>) -> Vec<f32> {
    let mut made: Option<StepOutputs> = None;
    let stages = chain.reverse.rule.stages(&chain.diffusion.schedule, 4);
    for stage in stages.iter().filter(|stage| stage.step == 0) {
        let output = chain.network.predict(&x, &[chain.diffusion.model_time(stage.level.time); 2], None, None);
        let before = made.as_ref();
        let inputs = StepInputs {
            x_start: [before.map(|made| &made.x_start[..]), None],
            kept: before.map(|made| &made.kept[..]),
            ..StepInputs::new(&output)
        };
        let after = chain.diffusion.step(chain.reverse, stage, 2, &x, inputs);
        x.clone_from(&after.next);
        made = Some(after);
    }
    made.unwrap().x_start
}

/// What a draw fills for each of some images.
fn of_images(images: impl Iterator<Item = u64>, fill: impl Fn(u64, &mut [f32])) -> Vec<f32> {
    let one = |image| {
        let mut values = vec![0.0; 64];
        fill(image, &mut values);
        values
    };
    images.flat_map(one).collect()
}

#[test]
fn a_walk_shows_each_step_as_its_first_call_saw_it() {
    let sampled = Sampled::new(&tiny());
    for (sampler, _) in SAMPLERS {
        // Where predictions are clipped both of Heun's may be alike.
        let config = five_steps(&[sampler, &[("clip_denoised", "false")]]);
        sampled.chain(&config, |chain| {
            let (images, seeded) = ([4, 9], Seeded(3));
            let subjects = Subjects { images: &images, labels: None, low_res: None, draws: &seeded };
            let from_noise = chain.run(subjects, |_, _, _| true).unwrap();
            let mut x = of_images(images.into_iter(), |image, values| seeded.initial(image, values));
            // A walk that begins with the same noise at the last index is the same.
            let mut walk = Walk::begin(chain, subjects, x.clone(), 4);
            let stages = chain.reverse.rule.stages(&chain.diffusion.schedule, 4);
            for step in 0..5 {
                assert_eq!(walk.x(), x);
                let first = *stages.iter().find(|stage| stage.step == step).unwrap();
                assert_eq!(walk.next(), Some(&first));
                let taken = walk.step().unwrap();
                assert_eq!(taken.stage, first);
                if let Some([of_x, of_noise]) = first.churn.map(|c| c.map(|v| v as f32)) {
                    let noise = of_images(images.into_iter(), |image, values| seeded.step(image, step, values));
                    x.iter_mut().zip(noise).for_each(|(x, z)| *x = *x * of_x + z * of_noise);
                }
                assert!(taken.x == x, "{sampler:?}");
                let times = [chain.diffusion.model_time(first.level.time); 2];
                assert!(taken.output == chain.network.predict(&x, &times, None, None), "{sampler:?}");
                if step == 0 && first.churn.is_none() {
                    assert!(taken.x_start == x_start_of_first_step(chain, x), "{sampler:?}");
                }
                x = walk.x().to_vec();
                if step == 4 {
                    assert!(x == taken.x_start, "{sampler:?}");
                }
            }
            assert!(walk.next().is_none() && walk.step().is_none());
            assert!(x == from_noise, "{sampler:?}");

            // A shorter walk takes fewer steps.
            let mut short = Walk::begin(chain, subjects, x, 1);
            assert!(short.step().is_some() && short.step().is_some() && short.step().is_none());
        });
    }
}

fn draw(job: &sample::Job) -> Result<Vec<u8>, Error> {
    assert_eq!(sample::run(job, cpu(), &AtomicBool::new(false), &mut |_| {})?, Outcome::Finished);
    Ok(Npz::open(&job.out_path())?.bytes("arr_0")?.values)
}

#[test]
fn given_noise_is_followed_by_every_sampler() {
    let folder = tempfile::tempdir().unwrap();
    let checkpoint = trained(&tiny(), &folder.path().join("run"));
    // What the seed would give.
    let noise = folder.path().join("noise.npz");
    let write = |steps: Option<usize>| {
        let mut npz = NpzWriter::new(std::fs::File::create(&noise).unwrap());
        let seeded = Seeded(7);
        let initial = of_images(0..5, |image, values| seeded.initial(image, values));
        npz.array::<f32>("initial_noise", &[5, 1, 8, 8], |push| push(&initial)).unwrap();
        if let Some(steps) = steps {
            npz.array::<f32>("step_noise", &[steps, 5, 1, 8, 8], |push| {
                (0..steps).try_for_each(|k| push(&of_images(0..5, |image, values| seeded.step(image, k, values))))
            })
            .unwrap();
        }
        npz.finish().unwrap();
    };
    for (n, (sampler, noisy)) in SAMPLERS.into_iter().enumerate() {
        let config = five_steps(&[sampler, &[("sample.seed", "7")]]);
        let seeded = draw(&job(&checkpoint, &config, &folder.path().join(format!("seeded{n}.npz")))).unwrap();
        let mut job = job(&checkpoint, &config, &folder.path().join(format!("given{n}.npz")));
        job.order.initial_noise = Some(noise.clone());
        write(None);
        if noisy {
            assert_says(draw(&job), &["noise.npz", "step_noise", "[5, N, C, H, W]"]);
            write(Some(5));
        }
        assert!(draw(&job).unwrap() == seeded, "{sampler:?}");
    }
}

#[test]
fn what_does_not_apply_is_refused_before_anything_is_done() {
    let folder = tempfile::tempdir().unwrap();
    let refused = |settings: &[(&str, &str)], parts: &[&str]| {
        let config = with(settings);
        let ConfigError(message) = config.validate().unwrap_err();
        let result = draw(&job(&folder.path().join("nothing"), &config, &folder.path().join("out/samples.npz")));
        assert!(matches!(&result, Err(Error::Config(error)) if error.0 == message), "{message}");
        assert_says(result, parts);
        assert!(!folder.path().join("out").exists());
    };
    for (sampler, noisy) in SAMPLERS {
        if !noisy {
            refused(&[sampler, &[("correct", "noise:1.1")]].concat(), &["noise:1.1", "adds no noise"]);
        }
        if sampler[0].1 != "heun" {
            refused(&[sampler, &[("correct", "es-euler:1.1")]].concat(), &["es-euler:1.1", "use es"]);
            refused(&[sampler, &[("churn", "1")]].concat(), &["--churn is for --sampler heun"]);
        }
        if sampler[0].1 != "ddim" {
            refused(&[sampler, &[("correct", "time-shift-released:5,1")]].concat(), &["use the ddim sampler"]);
        }
        let beyond = [sampler, &[("correct", "time-shift:5,100")]].concat();
        refused(&beyond, &["time-shift:5,100", "above the cutoff"]);
    }
    let previous = [("prediction", "previous-x"), ("loss", "mse"), ("correct", "ideal-ip:0.1")];
    refused(&previous, &["ideal-ip:0.1", "another noise level"]);
    let previous = [("prediction", "previous-x"), ("loss", "mse"), ("sampler", "heun"), ("churn", "1")];
    refused(&previous, &["--churn calls the network between timesteps"]);
    let odd = [("image_size", "7"), ("correct", "dcw:low,0.1")];
    refused(&odd, &["dcw:low,0.1", "use dcw:pixel"]);
    let pure_noise = [("noise_schedule", "linear"), ("prediction", "x-start"), ("sampler", "heun")];
    refused(&pure_noise, &["the heun sampler cannot begin at pure noise"]);
    refused(&[("spacing", "karras")], &["sample.spacing = karras"]);
    refused(&[("spacing", "karras"), ("sample.timestep_respacing", "ddim5")], &["\"ddim5\""]);
}
