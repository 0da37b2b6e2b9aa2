//! The statements about input perturbation that hold without sampling error, on the functions that training uses. The
//! rotation itself and its constants are tested in ddpm-math.

use super::support::{cpu, tensors, tiny, trained, with};
use ddpm_ip::config::{Config, Respacing};
use ddpm_ip::data::Batch;
use ddpm_ip::diffusion::{Diffusion, Noised, Terms};
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Engine, Feed, Parameters};
use ddpm_ip::train::{Draws, Task, Trainer};
use ddpm_math::perturb::{rotate, unrotate};
use ddpm_math::{Domain, Mode, Perturbation, Stream, Strength};

const GAMMA: f64 = 0.3;
const COUNT: usize = 6;
const PER_IMAGE: usize = 64;

fn normal(image: u64) -> Vec<f32> {
    let mut values = vec![0.0; COUNT * PER_IMAGE];
    Stream::new(7, Domain::Noise, image, 0).fill_normal(&mut values);
    values
}

fn doubles(x: &[f32]) -> Vec<f64> {
    x.iter().map(|&v| f64::from(v)).collect()
}

struct Case {
    diffusion: Diffusion,
    network: Engine<Unet>,
    parameters: Parameters,
}

impl Case {
    /// A network whose zero-initialised outputs were given values, with a learned variance.
    fn new() -> Self {
        let config = with(&[("variance", "learned-range"), ("loss", "rescaled-mse")]);
        let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
        let mut stream = Stream::new(3, Domain::Init, 0, 0);
        let values: Vec<Vec<f32>> = network
            .specs()
            .iter()
            .map(|spec| {
                let fan_in = spec.len() / spec.shape[0];
                let scale = if spec.shape.len() == 1 { 0.1 } else { 0.5 / (fan_in as f32).sqrt() };
                (0..spec.len()).map(|_| scale * stream.normal()).collect()
            })
            .collect();
        let parameters = Parameters::from_values(network.layout(), &values);
        let network = Engine::new(network, cpu());
        let diffusion = Diffusion::new(&config.diffusion, &Respacing::Full).unwrap();
        Self { diffusion, network, parameters }
    }

    fn noise(&self, mode: Mode, eps: &[f32], xi: &[f32]) -> Noised {
        let mix = Perturbation { mode, gamma: GAMMA, ..Perturbation::default() }.mix(GAMMA);
        let x_start: Vec<f32> = normal(9).iter().map(|v| v.clamp(-1.0, 1.0)).collect();
        self.diffusion.noise(&x_start, &[0, 1, 5, 10, 18, 19], &[mix; COUNT], eps, Some(xi))
    }

    /// Errors and bounds by image, and the gradient of the mean loss.
    fn run(&self, noised: &Noised) -> (Vec<f64>, Vec<f64>, Vec<f64>) {
        let times = self.diffusion.model_times(&noised.t);
        let feed = Feed::new(&noised.x_t, [8, 8], &times);
        let weights = [1.0 / COUNT as f64; COUNT];
        let (mut gradient, terms) = self.network.gradient(&self.parameters, feed, true, |images, output, grad| {
            self.diffusion.losses(noised, images.clone(), output, &weights[images], Some(grad))
        });
        let terms = terms.concat();
        let all = |term: &dyn Fn(&Terms) -> Option<f64>| terms.iter().map(|terms| term(terms).unwrap()).collect();
        (all(&|t| t.mse), all(&|t| t.vb), doubles(&gradient.values()))
    }
}

/// Draws (ε, ξ), their mirror (same ε', opposite ζ), and (ε', ζ).
fn draws() -> [(Vec<f32>, Vec<f32>); 3] {
    let (eps, xi) = (normal(1), normal(2));
    let pairs = || eps.iter().zip(&xi).map(|(&e, &x)| rotate(f64::from(e), f64::from(x), GAMMA));
    let narrow = |pairs: &mut dyn Iterator<Item = (f64, f64)>| pairs.map(|(a, b)| (a as f32, b as f32)).unzip();
    let rotated = narrow(&mut pairs());
    let mirrored = narrow(&mut pairs().map(|(e, z)| unrotate(e, -z, GAMMA)));
    [(eps, xi), mirrored, rotated]
}

fn assert_near(what: &str, a: &[f64], b: &[f64], tolerance: f64) {
    assert_eq!(a.len(), b.len());
    let worst = a.iter().zip(b).map(|(x, y)| (x - y).abs()).fold(0.0, f64::max);
    assert!(worst <= tolerance, "{what}: off by {worst:e}");
}

#[test]
fn both_forms_show_the_network_the_same_and_have_the_same_bound() {
    let case = Case::new();
    let [(eps, xi), _, (eps_prime, zeta)] = draws();
    let sampled = case.noise(Mode::Sampled, &eps, &xi);
    let equivalent = case.noise(Mode::Equivalent, &eps_prime, &zeta);
    assert_near("y_t", &doubles(&sampled.x_t), &doubles(&equivalent.x_t), 2e-6);
    let ((_, vb, _), (_, vb_equivalent, _)) = (case.run(&sampled), case.run(&equivalent));
    assert!(vb.iter().any(|v| v.abs() > 1e-3));
    for (a, b) in vb.iter().zip(&vb_equivalent) {
        assert!((a - b).abs() <= 1e-4 * (1.0 + b.abs()), "{a} and {b}");
    }
}

#[test]
fn the_losses_differ_path_by_path_as_derived() {
    let case = Case::new();
    let [(eps, xi), _, (eps_prime, zeta)] = draws();
    let noised = case.noise(Mode::Equivalent, &eps_prime, &zeta);
    let times = case.diffusion.model_times(&noised.t);
    let output = doubles(&case.network.forward(&case.parameters, Feed::new(&noised.x_t, [8, 8], &times)));
    // The first half of an image's output is the prediction.
    let f: Vec<f64> = output.chunks_exact(2 * PER_IMAGE).flat_map(|image| &image[..PER_IMAGE]).copied().collect();
    let (sampled, _, _) = case.run(&case.noise(Mode::Sampled, &eps, &xi));
    let (equivalent, _, _) = case.run(&noised);
    let (s, c) = ((1.0 + GAMMA * GAMMA).sqrt(), GAMMA * GAMMA / (1.0 + GAMMA * GAMMA));
    for image in 0..COUNT {
        let mean = |value: &dyn Fn(usize) -> f64| {
            (image * PER_IMAGE..(image + 1) * PER_IMAGE).map(value).sum::<f64>() / PER_IMAGE as f64
        };
        let (zeta, eps_prime) = (|i: usize| f64::from(zeta[i]), |i: usize| f64::from(eps_prime[i]));
        let expected =
            c * mean(&|i| zeta(i).powi(2)) + 2.0 * (GAMMA / s) * mean(&|i| zeta(i) * (eps_prime(i) / s - f[i]));
        assert!((sampled[image] - equivalent[image] - expected).abs() < 2e-5, "image {image}");
    }
}

#[test]
fn the_mean_over_mirrored_draws_has_exactly_the_equivalent_gradient() {
    let case = Case::new();
    let [(eps, xi), (mirrored_eps, mirrored_xi), (eps_prime, zeta)] = draws();
    let (_, _, gradient) = case.run(&case.noise(Mode::Sampled, &eps, &xi));
    let (_, _, mirrored) = case.run(&case.noise(Mode::Sampled, &mirrored_eps, &mirrored_xi));
    let (_, _, equivalent) = case.run(&case.noise(Mode::Equivalent, &eps_prime, &zeta));
    let norm = |v: &[f64]| v.iter().map(|x| x * x).sum::<f64>().sqrt();
    let minus = |a: &[f64]| -> Vec<f64> { a.iter().zip(&equivalent).map(|(a, b)| a - b).collect() };
    let mean: Vec<f64> = gradient.iter().zip(&mirrored).map(|(a, b)| 0.5 * (a + b)).collect();
    let (off, apart, size) = (minus(&mean), minus(&gradient), norm(&equivalent));
    assert!(norm(&off) < 1e-4 * size, "{:e} of {size:e}", norm(&off));
    assert!(norm(&apart) > 1e-2 * size, "one draw alone is far from it");
}

#[test]
fn without_strength_training_is_unperturbed_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let plain = tensors(&trained(&tiny(), &folder.path().join("plain")));
    for (i, mode) in ["sampled", "equivalent", "target-scaled"].into_iter().enumerate() {
        for (strength, scaled) in
            [("constant", "false"), ("cosine", "true"), ("uniform", "true"), ("decay", "true"), ("switched", "true")]
        {
            let config = with(&[
                ("gamma", "0"),
                ("perturbation.mode", mode),
                ("perturbation.strength", strength),
                ("perturbation.decay_steps", "10"),
                ("perturbation.scaled", scaled),
            ]);
            let perturbed = tensors(&trained(&config, &folder.path().join(format!("{i}{strength}"))));
            assert!(perturbed == plain, "{mode}, {strength}");
        }
    }
    let perturbed = tensors(&trained(&with(&[("gamma", "0.1")]), &folder.path().join("perturbed")));
    assert!(perturbed != plain);
}

#[test]
fn a_perturbation_that_is_never_or_always_on_is_none_or_constant_bit_for_bit() {
    let folder = tempfile::tempdir().unwrap();
    let run = |name: &str, settings: &[(&str, &str)]| tensors(&trained(&with(settings), &folder.path().join(name)));
    let (plain, constant) = (run("plain", &[]), run("constant", &[("gamma", "0.3")]));
    assert!(plain != constant);
    let switched = |name: &str, probability: &str| {
        run(name, &[("gamma", "0.3"), ("perturbation.strength", "switched"), ("perturbation.probability", probability)])
    };
    assert!(switched("never", "0") == plain);
    assert!(switched("always", "1") == constant);
    let sometimes = switched("sometimes", "0.5");
    assert!(sometimes != plain && sometimes != constant);
}

/// Draws of a training step for large images, and what they make of these.
struct Step {
    rule: Perturbation,
    diffusion: Diffusion,
    batch: Batch,
    draws: Draws,
    noised: Noised,
}

impl Step {
    const IMAGES: usize = 8;
    const SIZE: usize = 128;
    const VALUES: usize = Self::SIZE * Self::SIZE;

    fn new(rule: Perturbation) -> Self {
        let config = Config { perturbation: rule, ..with(&[("image_size", "128")]) };
        let diffusion = Diffusion::new(&config.diffusion, &Respacing::Full).unwrap();
        let task = Task::new(&config, cpu()).unwrap();
        let mut images = vec![0.0; Self::IMAGES * Self::VALUES];
        Stream::new(5, Domain::Init, 0, 0).fill_normal(&mut images);
        let batch = Batch { images, labels: None, position: 40 };
        let draws = Trainer::new(config, task, None).unwrap().draw(&batch);
        let noised = diffusion.noise(&batch.images, &draws.t, &draws.mixes, &draws.eps, draws.xi.as_deref());
        Self { rule, diffusion, batch, draws, noised }
    }

    fn alpha_bar(&self, image: usize) -> f64 {
        self.diffusion.schedule.alpha_bar[self.draws.t[image]]
    }

    /// An image's γ_t by the definitions, from its timestep and its uniform draw.
    fn gamma(&self, image: usize) -> f64 {
        let (rule, t) = (self.rule, self.draws.t[image] as f64);
        let u = Stream::new(0, Domain::Gamma, self.batch.position + image as u64, 0).uniform();
        let w = match rule.strength {
            Strength::Constant | Strength::Decay => 1.0,
            Strength::Linear => t / 19.0,
            Strength::Cosine => 0.5 - 0.5 * (std::f64::consts::PI * t / 19.0).cos(),
            Strength::Uniform => u,
            Strength::Switched => f64::from(u < rule.probability),
        };
        w * rule.gamma / if rule.scaled { 1.0 } else { (1.0 - self.alpha_bar(image)).sqrt() }
    }

    /// Var n and Cov(n, target) over an image's values, with n = (y − √ᾱ x₀)/√(1−ᾱ).
    fn moments(&self, image: usize) -> (f64, f64) {
        let alpha_bar = self.alpha_bar(image);
        let values = image * Self::VALUES..(image + 1) * Self::VALUES;
        let (mut variance, mut covariance) = (0.0, 0.0);
        for i in values {
            let [x, y, target] = [self.batch.images[i], self.noised.x_t[i], self.noised.eps[i]].map(f64::from);
            let n = (y - alpha_bar.sqrt() * x) / (1.0 - alpha_bar).sqrt();
            variance += n * n;
            covariance += n * target;
        }
        (variance / Self::VALUES as f64, covariance / Self::VALUES as f64)
    }
}

/// What perturbation is, for every form of it: more noise in the input, none of it in what is asked for.
#[test]
fn the_noise_has_the_stated_variance_and_the_stated_covariance_with_the_target() {
    for (&mode, &strength) in Mode::ALL.iter().flat_map(|mode| Strength::ALL.iter().map(move |s| (mode, s))) {
        for scaled in [true, false] {
            let rule = Perturbation { mode, strength, scaled, gamma: 0.5, decay_steps: 9, ..Perturbation::default() };
            let (step, plain) = (Step::new(rule), Step::new(Perturbation { gamma: 0.0, ..rule }));
            let what = format!("{mode}, {strength}, scaled {scaled}");
            if mode == Mode::Sampled {
                assert!(step.noised.eps == step.draws.eps && step.noised.eps == plain.noised.eps, "{what}");
            }
            let mut perturbed = 0;
            for image in 0..Step::IMAGES {
                let gamma = step.gamma(image);
                let values = image * Step::VALUES..(image + 1) * Step::VALUES;
                assert_eq!(step.noised.x_t[values.clone()] != plain.noised.x_t[values], gamma > 0.0, "{what}");
                perturbed += usize::from(gamma > 0.0);
                let s = (1.0 + gamma * gamma).sqrt();
                // With normal ε and ξ the variances of n² and n·target are 2s⁴ and Var n · Var target + Cov².
                let (covariance, target) = match mode {
                    Mode::Sampled => (1.0, 1.0),
                    Mode::Equivalent => (1.0, 1.0 / s),
                    Mode::TargetScaled => (s, 1.0),
                };
                let errors = [2.0 * s.powi(4), (s * target).powi(2) + covariance * covariance]
                    .map(|variance: f64| (variance / Step::VALUES as f64).sqrt());
                let (variance, found) = step.moments(image);
                let t = step.draws.t[image];
                assert!(
                    (variance - s * s).abs() < 5.0 * errors[0],
                    "{what}, t = {t}: Var n = {variance}, not {}",
                    s * s
                );
                assert!((found - covariance).abs() < 5.0 * errors[1], "{what}, t = {t}: {found}, not {covariance}");
            }
            assert!(perturbed > Step::IMAGES / 2, "{what}: {perturbed} images are perturbed");
        }
    }
}
