//! The statements about input perturbation that hold without sampling error, on the functions that training uses. The
//! rotation itself and its constants are tested in ddpm-math.

use super::support::{cpu, tensors, tiny, trained, with};
use ddpm_ip::config::Respacing;
use ddpm_ip::diffusion::{Diffusion, Noised, Terms};
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Engine, Feed, Parameters};
use ddpm_math::perturb::{rotate, unrotate};
use ddpm_math::{Domain, Mode, Perturbation, Stream};

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
        (all(&|t| t.mse), all(&|t| t.vb), doubles(gradient.values()))
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
        for strength in ["constant", "cosine", "uniform", "decay"] {
            let config = with(&[
                ("gamma", "0"),
                ("perturbation.mode", mode),
                ("perturbation.strength", strength),
                ("perturbation.decay_steps", "10"),
            ]);
            let perturbed = tensors(&trained(&config, &folder.path().join(format!("{i}{strength}"))));
            assert!(perturbed == plain, "{mode}, {strength}");
        }
    }
    let perturbed = tensors(&trained(&with(&[("gamma", "0.1")]), &folder.path().join("perturbed")));
    assert!(perturbed != plain);
}
