//! The gradient penalty against the exact Jacobian, and what it leaves as it is.

use super::support::{assert_same, assert_says, cpu, tensors, tiny, train, trained, with};
use ddpm_ip::Event;
use ddpm_ip::checkpoint::State;
use ddpm_ip::config::Config;
use ddpm_ip::data::Batch;
use ddpm_ip::diffusion::Diffusion;
use ddpm_ip::memory;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Engine, Feed, Parameters};
use ddpm_ip::train::{Draws, StepReport, Trainer};
use ddpm_math::{Domain, Perturbation, Stream};

/// Values of an image.
const D: usize = 64;

fn normal(count: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream::new(11, Domain::Noise, index, 0).fill_normal(&mut values);
    values
}

/// v of the image at a position of a run with seed 0.
fn direction(position: u64) -> Vec<f64> {
    let mut z = vec![0.0; D];
    Stream::new(0, Domain::Direction, position, 0).fill_normal(&mut z);
    let norm = squares(z.iter().map(|&z| f64::from(z))).sqrt();
    z.iter().map(|&z| f64::from(z) / norm).collect()
}

fn squares(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum()
}

/// A network with values everywhere, and images on their way to it.
struct Case {
    config: Config,
    parameters: Parameters,
    batch: Batch,
    draws: Draws,
}

impl Case {
    fn new(settings: &[(&str, &str)], count: usize) -> Self {
        let config = with(settings);
        let network = unet(&config);
        let values: Vec<Vec<f32>> = network
            .specs()
            .iter()
            .enumerate()
            .map(|(i, spec)| {
                let scale = 0.5 / ((spec.len() / spec.shape[0]) as f32).sqrt();
                normal(spec.len(), 100 + i as u64).iter().map(|v| v * scale).collect()
            })
            .collect();
        let images = normal(count * D, 0).iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        let draws = Draws {
            t: (0..count).map(|i| 7 * i % 20).collect(),
            weights: vec![1.0; count],
            mixes: vec![Perturbation::default().mix(0.0); count],
            eps: normal(count * D, 1),
            xi: None,
        };
        let parameters = Parameters::from_values(network.layout(), &values);
        Self { config, parameters, batch: Batch { images, labels: None, position: 300 }, draws }
    }

    /// A step from the case's parameters with a penalty: its report and its gradient.
    fn step(&self, settings: &[(&str, &str)], parameters: &Parameters) -> (StepReport, Vec<f32>) {
        let mut config = self.config.clone();
        let changed = with(settings).train;
        (config.train.gradient_penalty, config.train.microbatch) = (changed.gradient_penalty, changed.microbatch);
        config.train.batch_size = self.draws.t.len();
        config.train.ema_rate.clear();
        let state = State::new(parameters.clone(), &config.train);
        let mut trainer = Trainer::new(config.clone(), unet(&config), Some(state)).unwrap();
        let report = trainer.train_step_with(&self.batch, self.draws.clone()).unwrap();
        // After one step the first moment is a tenth of the gradient.
        let gradient = trainer.state().moments[0].values().iter().map(|m| m / (1.0 - 0.9)).collect();
        (report, gradient)
    }

    fn penalties(&self) -> Vec<f64> {
        self.step(&[("gradient_penalty", "1")], &self.parameters).0.term("penalty").unwrap().to_vec()
    }

    /// ∂f/∂x of an image, row by row, by as many backward passes; without dropout.
    fn jacobian(&self, image: usize) -> Vec<Vec<f64>> {
        let (x, times) = self.input(image, D);
        let engine = Engine::new(unet(&self.config), cpu());
        let gradient = engine.image_gradient(&self.parameters, Feed::new(&x, [8, 8], &times), |rows, output, grad| {
            let per_output = output.len() / rows.len();
            grad.fill(0.0);
            grad.chunks_exact_mut(per_output).zip(rows).for_each(|(grad, row)| grad[row] = 1.0);
        });
        gradient.chunks_exact(D).map(|row| row.iter().map(|&v| f64::from(v)).collect()).collect()
    }

    /// So many copies of an image as the network sees it, and their times.
    fn input(&self, image: usize, copies: usize) -> (Vec<f32>, Vec<f32>) {
        let diffusion = Diffusion::new(&self.config.diffusion, &self.config.diffusion.timestep_respacing).unwrap();
        let Draws { t, mixes, eps, .. } = &self.draws;
        let noised = diffusion.noise(&self.batch.images, t, mixes, eps, None);
        let x = noised.x_t[image * D..(image + 1) * D].repeat(copies);
        (x, vec![diffusion.model_times(t)[image]; copies])
    }

    /// ‖J_x v‖² for the direction of an image.
    fn exact(&self, image: usize) -> f64 {
        let v = direction(self.batch.position + image as u64);
        squares(self.jacobian(image).iter().map(|row| row.iter().zip(&v).map(|(j, v)| j * v).sum()))
    }
}

fn unet(config: &Config) -> Unet {
    Unet::new(config.model.network(config.diffusion.variance).unwrap())
}

fn norm(values: &[f32]) -> f64 {
    squares(values.iter().map(|&v| f64::from(v))).sqrt()
}

fn apart(a: &[f32], b: &[f32]) -> f64 {
    norm(&a.iter().zip(b).map(|(a, b)| a - b).collect::<Vec<f32>>())
}

#[test]
fn the_penalty_is_the_squared_slope_of_the_prediction_and_part_of_the_loss() {
    for settings in [&[][..], &[("variance", "learned-range"), ("loss", "rescaled-mse")]] {
        let case = Case::new(settings, 6);
        let (plain, _) = case.step(&[], &case.parameters);
        let (report, _) = case.step(&[("gradient_penalty", "0.7")], &case.parameters);
        assert!(plain.term("penalty").is_none());
        for name in ["mse", "vb"] {
            assert_eq!(report.term(name), plain.term(name));
        }
        for (image, &penalty) in report.term("penalty").unwrap().iter().enumerate() {
            let exact = 0.7 * case.exact(image);
            assert!((penalty - exact).abs() < 2e-3 * exact, "image {image}: {penalty}, not {exact}");
            assert_eq!(report.loss()[image], plain.loss()[image] + penalty);
        }
    }
}

#[test]
fn over_directions_its_mean_is_the_jacobians_square_over_the_number_of_values() {
    const COUNT: usize = 400;
    let mut case = Case::new(&[], 1);
    let expected = case.jacobian(0).iter().map(|row| squares(row.iter().copied())).sum::<f64>() / D as f64;
    let repeat = |values: &[f32]| values.repeat(COUNT);
    (case.batch.images, case.draws.eps) = (repeat(&case.batch.images), repeat(&case.draws.eps));
    case.draws.t = vec![case.draws.t[0]; COUNT];
    case.draws.weights = vec![1.0; COUNT];
    case.draws.mixes = vec![case.draws.mixes[0]; COUNT];
    let penalties = case.penalties();
    let mean = penalties.iter().sum::<f64>() / COUNT as f64;
    let error = (squares(penalties.iter().map(|p| p - mean)) / (COUNT * (COUNT - 1)) as f64).sqrt();
    assert!((mean - expected).abs() < 4.0 * error, "{mean} ± {error}, not {expected}");
    assert!(error < 0.05 * expected);
}

/// Why the step is what it is: a hundred times shorter it would see rounding, a hundred times longer curvature.
#[test]
fn the_step_lies_between_rounding_and_curvature() {
    let case = Case::new(&[], 6);
    let engine = Engine::new(unet(&case.config), cpu());
    let error = |rms: f64| {
        let h = rms * (D as f64).sqrt();
        let of_image = |image: usize| {
            let ((x, times), v) = (case.input(image, 1), direction(300 + image as u64));
            let moved: Vec<f32> = x.iter().zip(&v).map(|(&x, v)| x + (h * v) as f32).collect();
            let f = |x: &[f32]| engine.forward(&case.parameters, Feed::new(x, [8, 8], &times));
            let slope = squares(f(&moved).iter().zip(&f(&x)).map(|(a, b)| f64::from(a - b) / h));
            (slope / case.exact(image) - 1.0).abs()
        };
        (0..6).map(of_image).sum::<f64>() / 6.0
    };
    let errors = [1e-5, 1e-3, 1e-1].map(error);
    assert!(errors[1] < 1e-3, "{errors:?}");
    assert!(errors[0] > 10.0 * errors[1] && errors[2] > 10.0 * errors[1], "{errors:?}");
}

#[test]
fn its_gradient_is_that_of_the_whole_loss() {
    let case = Case::new(&[("dropout", "0.2")], 5);
    let penalised = [("gradient_penalty", "50")];
    let (report, gradient) = case.step(&penalised, &case.parameters);
    let (_, plain) = case.step(&[], &case.parameters);
    let penalty = report.term("penalty").unwrap().iter().sum::<f64>() / 5.0;
    assert!(penalty > 0.5 * report.mean_loss(), "the penalty matters");
    assert!(apart(&gradient, &plain) > norm(&plain));
    // Along the gradient of some parameters, so far that the loss changes by more than the rounding in it.
    let layout = case.parameters.layout();
    for (name, share) in [
        ("input_blocks.0.0.weight", 1e-2),
        ("input_blocks.1.0.in_layers.2.weight", 4e-3),
        ("middle_block.0.out_layers.3.weight", 1e-2),
        ("time_embed.0.weight", 4e-2),
        ("out.2.weight", 3e-2),
    ] {
        let place = layout.specs().iter().position(|spec| spec.name == name).unwrap_or_else(|| panic!("no {name}"));
        let range = layout.range(place);
        let along = &gradient[range.clone()];
        let slope = norm(along).powi(2);
        let size = share * norm(case.parameters.get(place)) / norm(along);
        let loss = |size: f64| {
            let mut parameters = case.parameters.clone();
            let values = parameters.values_mut()[range.clone()].iter_mut();
            values.zip(along).for_each(|(value, g)| *value += (size * f64::from(*g)) as f32);
            case.step(&penalised, &parameters).0.mean_loss()
        };
        let difference = (loss(size) - loss(-size)) / (2.0 * size);
        assert!((difference - slope).abs() < 2e-2 * slope, "{name}: {difference}, not {slope}");
    }
}

/// Of an image it depends on nothing but its position, the dropout masks of both passes included.
#[test]
fn pieces_of_a_batch_give_the_same() {
    // The whole batch is cut into two shards, and microbatches cut it elsewhere.
    let case = Case::new(&[("dropout", "0.2")], 40);
    let (whole, gradient) = case.step(&[("gradient_penalty", "0.5")], &case.parameters);
    let (parts, of_parts) = case.step(&[("gradient_penalty", "0.5"), ("microbatch", "12")], &case.parameters);
    assert_eq!(whole.term("penalty"), parts.term("penalty"));
    assert_eq!(whole.loss(), parts.loss());
    assert!(apart(&gradient, &of_parts) < 1e-4 * norm(&gradient));
    // Masks of two kinds would make a jump of the output, over a step that is small.
    let undropped = Case::new(&[], 40).penalties();
    let ratio = whole.term("penalty").unwrap().iter().sum::<f64>() / (0.5 * undropped.iter().sum::<f64>());
    assert!((0.3..3.0).contains(&ratio), "{ratio}");
}

#[test]
fn a_run_with_it_resumes_bit_for_bit_and_logs_it() {
    let folder = tempfile::tempdir().unwrap();
    let config = |steps: &str| {
        with(&[
            ("gradient_penalty", "0.1"),
            ("steps", steps),
            ("dropout", "0.2"),
            ("gamma", "0.1"),
            ("class_cond", "true"),
            ("log_interval", "1"),
            ("train.batch_size", "40"),
            ("schedule_sampler", "loss-second-moment"),
        ])
    };
    let straight = trained(&config("6"), &folder.path().join("straight"));
    trained(&config("3"), &folder.path().join("resumed"));
    assert_same(&straight, &trained(&config("6"), &folder.path().join("resumed")));
    let logged = |config: &Config, name: &str| {
        let (_, events) = train(config, &folder.path().join(name));
        let line = events.into_iter().find_map(|e| if let Event::Log(line) = e { Some(line) } else { None }).unwrap();
        let value = |key: &str| line.iter().find(|(k, _)| k == key).map(|(_, value)| *value);
        ["loss", "mse", "penalty"].map(value)
    };
    let [loss, mse, penalty] = logged(&config("1"), "logged").map(Option::unwrap);
    assert!(penalty == 0.0 && (loss - mse - penalty).abs() < 1e-6, "a fresh network is 0 everywhere");
    assert_eq!(logged(&tiny(), "plain")[2], None);
}

#[test]
fn it_changes_training_and_costs_memory_that_is_counted() {
    let folder = tempfile::tempdir().unwrap();
    let penalised = with(&[("gradient_penalty", "0.1")]);
    let plain = tensors(&trained(&tiny(), &folder.path().join("plain")));
    assert!(tensors(&trained(&penalised, &folder.path().join("penalised"))) != plain);
    let bytes = |config: &Config, part: &str| {
        let memory = memory::of_training(config, ddpm_ip::Device::Cpu).unwrap();
        memory.parts.iter().find(|p| p.name == part).map_or(0, |p| p.bytes)
    };
    let gradients = "gradients and their partial sums";
    assert_eq!((bytes(&tiny(), gradients), bytes(&penalised, gradients)), (0, 2 * bytes(&tiny(), "parameters")));
    let images = "images and noise of a step";
    assert!(bytes(&penalised, images) > bytes(&tiny(), images));
}

#[test]
fn it_is_refused_where_it_means_nothing() {
    let folder = tempfile::tempdir().unwrap();
    let penalised = ("gradient_penalty", "0.1");
    for (settings, parts) in [
        (&[penalised, ("model.precision", "bf16")][..], ["--gradient-penalty", "rounding in bf16"]),
        (&[penalised, ("model.precision", "f16")], ["--precision f32", "rounding in f16"]),
        (&[penalised, ("arch", "classifier"), ("classifier.channel_mult", "1")], ["--gradient-penalty", "classifiers"]),
        (&[("gradient_penalty", "-1")], ["train.gradient_penalty = -1", "negative"]),
    ] {
        assert_says(train(&with(settings), folder.path()).0, &parts);
    }
}
