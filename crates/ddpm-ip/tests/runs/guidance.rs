//! Training with dropped labels, and what guidance asks of checkpoints.

use super::support::{assert_same, assert_says, cpu, job, remarks, tensors, train, trained, with};
use ddpm_ip::checkpoint;
use ddpm_ip::config::Config;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::npz::Npz;
use ddpm_ip::sample::{self, GuideJob};
use ddpm_ip::{Error, Event, Outcome};
use std::path::Path;
use std::sync::atomic::AtomicBool;

const CLASSES: &[(&str, &str)] = &[("class_cond", "true")];
const DROPPED: &[(&str, &str)] = &[("class_cond", "true"), ("label_dropout", "0.5")];

fn settings_of(checkpoint: &Path) -> Config {
    checkpoint::config_of(&checkpoint.join("model.safetensors")).unwrap().unwrap()
}

fn weaker(checkpoint: &Path) -> GuideJob {
    GuideJob { config: settings_of(checkpoint), checkpoint: checkpoint.to_path_buf() }
}

fn run(job: &sample::Job) -> (Result<Outcome, Error>, Vec<Event>) {
    let mut events = Vec::new();
    let outcome = sample::run(job, cpu(), &AtomicBool::new(false), &mut |e| events.push(e));
    (outcome, events)
}

fn draw(job: &sample::Job) -> Vec<u8> {
    assert_eq!(run(job).0.unwrap(), Outcome::Finished);
    Npz::open(&job.out_path()).unwrap().bytes("arr_0").unwrap().values
}

/// Samples with guidance by the checkpoint's own settings.
fn guided(checkpoint: &Path, scale: f64, out: &Path) -> sample::Job {
    let mut config = settings_of(checkpoint);
    config.sample.guidance_scale = scale;
    job(checkpoint, &config, out)
}

#[test]
fn labels_are_dropped_by_the_seed_and_the_place_in_the_run_alone() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, steps: &str, more: &[(&str, &str)]| {
        trained(&with(&[DROPPED, &[("steps", steps)], more].concat()), &folder.path().join(name))
    };
    let straight = run("straight", "6", &[]);
    run("parts", "3", &[]);
    assert_same(&straight, &run("parts", "6", &[]));
    // Of the first 24 images some lose their label and others keep it: neither run is this one.
    for (name, dropout) in [("all", "0"), ("other", "0.1")] {
        assert!(tensors(&straight) != tensors(&run(name, "6", &[("label_dropout", dropout)])), "{name}");
    }
    let network = Unet::new(with(DROPPED).model.network(with(DROPPED).diffusion.variance).unwrap());
    let all = checkpoint::list(&straight.join("model.safetensors"), "").unwrap().0;
    let shapes = all.iter().filter(|t| !t.name.starts_with("label_emb")).count();
    assert_eq!(shapes + 1, network.specs().len(), "no parameter of its own");
}

#[test]
fn next_to_all_labels_dropped_leave_the_embedding_as_it_was() {
    let folder = tempfile::tempdir().unwrap();
    let embedding = |name: &str, steps: &str, dropout: &str| {
        let config = with(&[CLASSES, &[("label_dropout", dropout), ("steps", steps)]].concat());
        let network = Unet::new(
            settings_of(&trained(&config, &folder.path().join(name))).model.network(config.diffusion.variance).unwrap(),
        );
        let newest = checkpoint::Store::new(&folder.path().join(name)).newest().unwrap().unwrap().1;
        let parameters = checkpoint::load(&newest.join("model.safetensors"), network.layout(), "").unwrap();
        let place = network.specs().iter().position(|spec| spec.name == "label_emb.weight").unwrap();
        parameters.get(place).to_vec()
    };
    let [short, long] = [("a", "1"), ("b", "5")].map(|(name, steps)| embedding(name, steps, "0.999999"));
    assert!(short == long, "no image has told its class");
    assert!(embedding("c", "5", "0.5") != embedding("d", "1", "0.5"));
}

#[test]
fn samples_are_led_away_from_those_without_class_and_from_weaker_networks() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let settings = [DROPPED, &[("lr", "0.01"), ("steps", "12"), ("train.save_interval", "6")]].concat();
    let checkpoint = trained(&with(&settings), &place("run"));
    let earlier = place("run/checkpoints/step_000006");
    let plain = draw(&guided(&checkpoint, 1.0, &place("plain.npz")));
    let led = draw(&guided(&checkpoint, 4.0, &place("led.npz")));
    assert!(plain != led);
    let mut apart = guided(&checkpoint, 4.0, &place("apart.npz"));
    apart.config.sample.batch_size = 5;
    assert!(draw(&apart) == led, "images depend on the batch size");
    apart.config.sample.guidance_interval = vec![0.5, 3.0];
    let within = draw(&apart);
    assert!(within != led && within != plain);
    // By another checkpoint, by an average, and by itself.
    let mut by = |weak: &Path, scale: f64| {
        apart.config.sample.guidance_interval.clear();
        apart.config.sample.guidance_scale = scale;
        apart.order.guide_with = Some(weaker(&earlier));
        apart.order.guide_with.as_mut().unwrap().checkpoint = weak.to_path_buf();
        draw(&apart)
    };
    let (by_earlier, by_average) = (by(&earlier, 4.0), by(&checkpoint.join("ema_0.99.safetensors"), 4.0));
    assert!(by_earlier != led && by_earlier != plain && by_average != by_earlier && by_average != plain);
    assert!(by(&checkpoint, 4.0) == plain, "a network does not lead away from itself");
    assert!(by(&earlier, 1.0) == plain);
    let (_, events) = run(&apart);
    assert!(remarks(&events).iter().any(|remark| remark.contains("--guide-with does nothing")), "{events:?}");
    // A network without classes, and one that has none to be led to.
    let unconditional = trained(&with(&[("lr", "0.01")]), &place("unconditional"));
    let mut mixed = guided(&checkpoint, 3.0, &place("mixed.npz"));
    mixed.order.guide_with = Some(weaker(&unconditional));
    assert!(draw(&mixed) != plain);
    let mut without = guided(&unconditional, 3.0, &place("without.npz"));
    without.order.guide_with = Some(weaker(&trained(&with(&[("steps", "1")]), &place("young"))));
    let led = draw(&without);
    without.config.sample.guidance_scale = 1.0;
    assert!(draw(&without) != led);
}

#[test]
fn guidance_that_cannot_be_is_refused_with_what_can() {
    let folder = tempfile::tempdir().unwrap();
    let place = |name: &str| folder.path().join(name);
    let out = place("out.npz");
    let unconditional = trained(&with(&[]), &place("unconditional"));
    assert_says(run(&guided(&unconditional, 2.0, &out)).0, &["guides towards classes", "--guide-with"]);
    let told = trained(&with(CLASSES), &place("told"));
    assert_says(run(&guided(&told, 2.0, &out)).0, &["--label-dropout 0.1", "--guide-with", "train.label_dropout=0.1"]);
    let mut wrong = guided(&told, 2.0, &out);
    for interval in
        [vec![3.0], vec![3.0, 1.0], vec![1.0, 1.0], vec![-1.0, 2.0], vec![f64::NAN, 1.0], vec![1.0, 2.0, 3.0]]
    {
        wrong.config.sample.guidance_interval.clone_from(&interval);
        assert_says(run(&wrong).0, &["sample.guidance_interval", "as in 0.2,5"]);
    }
    let by = |settings: &[(&str, &str)], change: &dyn Fn(&mut Config)| {
        let name = settings.iter().map(|(key, value)| format!("{key}-{value}")).collect::<Vec<_>>().join("-");
        let mut weak = weaker(&trained(&with(settings), &place(&name)));
        change(&mut weak.config);
        let mut job = guided(&told, 2.0, &out);
        job.order.guide_with = Some(weak);
        run(&job).0
    };
    assert_says(
        by(&[("train.seed", "1")], &|c| c.model.image_size = 16),
        &["--guide-with", "16x16 pixels", "8x8 pixels"],
    );
    assert_says(by(&[("noise_schedule", "linear"), ("diffusion_steps", "50")], &|_| ()), &["50 linear", "20 cosine"]);
    assert_says(by(&[("prediction", "x-start")], &|_| ()), &["x-start", "epsilon"]);
    assert_says(by(CLASSES, &|c| c.model.num_classes = 7), &["classes: 7", "10"]);
    assert_says(by(&[("diffusion.timestep_respacing", "10")], &|_| ()), &["was trained at only 10 of 20"]);
    assert!(!out.exists());
    // In training.
    let refused = |settings: &[(&str, &str)]| train(&with(settings), &place("refused")).0;
    assert_says(refused(&[("label_dropout", "0.1")]), &["--label-dropout", "--class-cond"]);
    assert_says(refused(&[("class_cond", "true"), ("label_dropout", "1")]), &["train.label_dropout = 1", "0.1"]);
    assert_says(refused(&[("guidance_scale", "2"), ("class_cond", "true")]), &["--label-dropout 0.1"]);
    assert!(!place("refused").exists());
}

#[test]
fn grids_of_a_run_are_guided_as_its_settings_say() {
    let folder = tempfile::tempdir().unwrap();
    let grid = |name: &str, scale: &str| {
        let settings = [DROPPED, &[("lr", "0.01"), ("grid_images", "4"), ("guidance_scale", scale)]].concat();
        trained(&with(&settings), &folder.path().join(name));
        std::fs::read(folder.path().join(name).join("samples/step_000004.png")).unwrap()
    };
    assert!(grid("plain", "1") != grid("led", "5"));
}
