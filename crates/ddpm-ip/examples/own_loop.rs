//! A training loop of one's own on the library's engine: flow matching with input perturbation, which the program does not have.
//!
//! ```text
//! cargo run --release --example own_loop -p ddpm-ip [STEPS] [GRID.png]
//! ```
//!
//! The network predicts the velocity ε − x_0 on the path (1 − t)·x_0 + t·ε (Lipman et al. 2023). What it is shown and asked for is
//! the recipe of `ddpm_math::recipe`; images are drawn by Euler steps from t = 1 to 0.

use ddpm_ip::config::{Layers, Preset};
use ddpm_ip::data::{Dataset, Loader, Options, contact_sheet};
use ddpm_ip::diffusion::to_u8;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Device, Engine, Feed, Parameters};
use ddpm_math::{Domain, Mode, Perturbation, Stream, Target};
use std::error::Error;
use std::sync::Arc;

const GAMMA: f64 = 0.1;
const SEED: u64 = 0;
const BATCH: usize = 64;
/// Side of the images.
const SIZE: usize = 8;
const PIXELS: usize = SIZE * SIZE;
/// Images that are drawn, and steps of each.
const DRAWN: usize = 40;
const EULER: usize = 50;

/// Adam (Kingma & Ba 2015), on flat parameters.
struct Adam {
    moments: [Vec<f32>; 2],
    step: i32,
}

impl Adam {
    fn step(&mut self, lr: f32, parameters: &mut [f32], gradient: &[f32]) {
        let [m, v] = &mut self.moments;
        self.step += 1;
        let (first, second) = (1.0 - 0.9f32.powi(self.step), 1.0 - 0.999f32.powi(self.step));
        for (((p, g), m), v) in parameters.iter_mut().zip(gradient).zip(m).zip(v) {
            *m += 0.1 * (g - *m);
            *v += 0.001 * (g * g - *v);
            *p -= lr * (*m / first) / ((*v / second).sqrt() + 1e-8);
        }
    }
}

/// Times as the network is told them.
fn told(t: f32) -> f32 {
    1000.0 * t
}

fn main() -> Result<(), Box<dyn Error>> {
    let mut words = std::env::args().skip(1);
    let steps: u64 = words.next().map_or(Ok(600), |text| text.parse())?;
    let grid = words.next().unwrap_or_else(|| "flow.png".into());

    let mut layers = Layers::default();
    layers.add(Preset::find("digits")?.table())?;
    layers.set([("class_cond", "false")])?;
    let config = layers.resolve()?;
    let engine = Engine::new(Unet::new(config.model.network(config.diffusion.variance)?), Device::Cpu);
    let mut parameters = Parameters::initial(engine.network().layout(), SEED);
    let count = parameters.values().len();
    let mut adam = Adam { moments: [vec![0.0; count], vec![0.0; count]], step: 0 };

    let mut loader = Loader::start(Arc::new(Dataset::open("digits", &Options::new(SIZE, 1))?), BATCH, SEED, 0, 1, 2)?;
    let rule = Perturbation { mode: Mode::Equivalent, gamma: GAMMA, ..Perturbation::default() };

    for step in 0..steps {
        let batch = loader.next()?;
        let (mut shown, mut target, mut times) = (Vec::new(), Vec::new(), Vec::new());
        for (i, x_0) in batch.images.chunks_exact(PIXELS).enumerate() {
            // Of an image's place in the run, whatever the batch is.
            let stream = |domain| Stream::new(SEED, domain, batch.position + i as u64, 0);
            let t = stream(Domain::Time).uniform();
            let mut eps = [0.0f32; PIXELS];
            stream(Domain::Noise).fill_normal(&mut eps);
            let recipe = rule.recipe(Target::Velocity, [1.0 - t, t], GAMMA);
            let [of_x, of_eps, _] = recipe.input.map(|c| c as f32);
            let [to_x, to_eps] = recipe.target.map(|c| c as f32);
            shown.extend(x_0.iter().zip(&eps).map(|(x, e)| of_x * x + of_eps * e));
            target.extend(x_0.iter().zip(&eps).map(|(x, e)| to_x * x + to_eps * e));
            times.push(told(t as f32));
        }
        let scale = 1.0 / shown.len() as f32;
        let feed = Feed::new(&shown, [SIZE; 2], &times);
        let (mut gradient, losses) = engine.gradient(&parameters, feed, true, |images, output, grad| {
            let target = &target[images.start * PIXELS..images.end * PIXELS];
            let mut loss = 0.0;
            for ((answer, target), grad) in output.iter().zip(target).zip(grad) {
                loss += (answer - target).powi(2);
                *grad = 2.0 * (answer - target) * scale;
            }
            loss * scale
        });
        let lr = 2e-3 * (1.0 - step as f32 / steps as f32);
        adam.step(lr, parameters.values_mut(), &gradient.values());
        if (step + 1).is_multiple_of(100) {
            println!("step {:5}  loss {:.4}", step + 1, losses.iter().sum::<f32>());
        }
    }

    let mut x = vec![0.0; DRAWN * PIXELS];
    Stream::new(SEED, Domain::Sample, 0, 0).fill_normal(&mut x);
    for k in (1..=EULER).rev() {
        let times = vec![told(k as f32 / EULER as f32); DRAWN];
        let velocity = engine.forward(&parameters, Feed::new(&x, [SIZE; 2], &times));
        x.iter_mut().zip(velocity).for_each(|(x, v)| *x -= v / EULER as f32);
    }
    contact_sheet(&to_u8(&x, 1, PIXELS), DRAWN, SIZE, 1).save(grid.as_ref())?;
    println!("{grid}");
    Ok(())
}
