//! What the instruments should read on Gaussian data: every stage of a chain is affine in what it holds, so mean and covariance
//! of all that follow from those at the beginning.

use super::exact::Exact;
use ddpm_ip::diffusion::Reverse;
use ddpm_math::{Level, Pixel, ReverseStep, Stage, Update};

/// x_0, x, the kept x, and the last two predictions of x_0, of a pixel.
const HELD: usize = 5;
const X_START: usize = 0;
const X: usize = 1;

type Held = [f64; HELD];

/// Mean and covariance of what a chain holds of one pixel.
#[derive(Clone, Copy)]
pub(crate) struct Joint {
    mean: Held,
    covariance: [Held; HELD],
}

/// Mean and variance of a normal number.
pub(crate) type Normal = [f64; 2];

impl Joint {
    /// What an affine function of what is held and of a standard normal draw makes.
    fn map(&self, f: impl Fn(Held, f64) -> Held) -> Self {
        let constant = f([0.0; HELD], 0.0);
        let less = |v: Held| std::array::from_fn(|i| v[i] - constant[i]);
        let column = |j: usize| less(f(std::array::from_fn(|i| f64::from(u8::from(i == j))), 0.0));
        let columns: [Held; HELD] = std::array::from_fn(column);
        let noise: Held = less(f([0.0; HELD], 1.0));
        let sum = |of: &dyn Fn(usize) -> f64| (0..HELD).map(of).sum::<f64>();
        let covariance = |a: usize, b: usize| {
            let of = |i: usize| sum(&|j| columns[i][a] * self.covariance[i][j] * columns[j][b]);
            sum(&of) + noise[a] * noise[b]
        };
        Self {
            mean: std::array::from_fn(|a| constant[a] + sum(&|i| columns[i][a] * self.mean[i])),
            covariance: std::array::from_fn(|a| std::array::from_fn(|b| covariance(a, b))),
        }
    }

    /// x.
    pub(crate) fn x(&self) -> Normal {
        [self.mean[X], self.covariance[X][X]]
    }

    /// x − k x_0.
    pub(crate) fn residual(&self, k: f64) -> Normal {
        let [of_x_start, of_x] = [self.covariance[X_START], self.covariance[X]];
        let variance = of_x[X] - 2.0 * k * of_x[X_START] + k * k * of_x_start[X_START];
        [self.mean[X] - k * self.mean[X_START], variance]
    }
}

/// What chains that begin at index `first` at q(x_s | x_0) hold of each pixel: at each level when the network is called, from
/// the data's end on, and at the end.
pub(crate) fn chains(network: &Exact, reverse: &Reverse, first: usize) -> (Vec<Vec<Joint>>, Vec<Joint>) {
    let Exact { data, diffusion, .. } = *network;
    let schedule = &diffusion.schedule;
    let stages = reverse.rule.stages(schedule, first);
    let begin = |p: usize| {
        let (level, v, mean) = (schedule.level(first), data.variance[p], data.modes[0][p]);
        let mut joint = Joint { mean: [0.0; HELD], covariance: [[0.0; HELD]; HELD] };
        [joint.mean[X_START], joint.mean[X]] = [mean, level.alpha() * mean];
        joint.covariance[X_START][X_START] = v;
        joint.covariance[X][X_START] = level.alpha() * v;
        joint.covariance[X_START][X] = level.alpha() * v;
        joint.covariance[X][X] = level.alpha_bar * v + level.sigma().powi(2);
        joint
    };
    let mut now: Vec<Joint> = (0..data.len()).map(begin).collect();
    let mut at_calls = Vec::new();
    for stage in &stages {
        if let Some([of_x, of_noise]) = stage.churn {
            for joint in &mut now {
                *joint = joint.map(|[x_start, x, rest @ ..], z| {
                    let [kept, newer, older] = rest;
                    [x_start, of_x * x + of_noise * z, kept, newer, older]
                });
            }
        }
        if stage.called_at == stage.index {
            at_calls.push(now.clone());
        }
        let step = ReverseStep::<f64>::new(schedule, diffusion.prediction, diffusion.variance, stage);
        for (p, joint) in now.iter_mut().enumerate() {
            *joint = joint.map(|held, noise| next(network, reverse, stage, &step, p, held, noise));
        }
    }
    at_calls.reverse();
    (at_calls, now)
}

/// What a stage makes of what is held.
fn next(
    network: &Exact,
    reverse: &Reverse,
    stage: &Stage,
    step: &ReverseStep<f64>,
    p: usize,
    [x_start, x, kept, newer, older]: Held,
    noise: f64,
) -> Held {
    let call = reverse.corrections.call(&network.diffusion.schedule, stage);
    let pixel = Pixel {
        x,
        prediction: network.eps(p, x * call.input, network.data.modes[0][p], call.time) / call.eps,
        values: network.log_variance(p, network.diffusion.schedule.times[stage.called_at]),
        guidance: None,
        noise,
        x_start: [newer, older],
        kept,
    };
    let made = step.step(pixel, None);
    match stage.update {
        Update::Mix { .. } => [x_start, made.next, made.kept, made.x_start, newer],
        _ => [x_start, made.next, kept, newer, older],
    }
}

/// True x_t.
pub(crate) fn truth(network: &Exact, level: Level) -> Vec<Normal> {
    let pixels = network.data.modes[0].iter().zip(&network.data.variance);
    pixels.map(|(mean, v)| [level.alpha() * mean, level.alpha_bar * v + level.sigma().powi(2)]).collect()
}

/// What the network, told `time`, says of x: ε.
pub(crate) fn eps(network: &Exact, x: &[Normal], time: f64) -> Vec<Normal> {
    let of_pixel = |(p, &[mean, variance]): (usize, &Normal)| {
        let eps = |x: f64| network.eps(p, x, network.data.modes[0][p], time);
        [eps(mean), (eps(1.0) - eps(0.0)).powi(2) * variance]
    };
    x.iter().enumerate().map(of_pixel).collect()
}

/// x̂_0 that follows from what the network says of x.
pub(crate) fn x_start(network: &Exact, x: &[Normal], level: Level) -> Vec<Normal> {
    let of_pixel = |(p, &[mean, variance]): (usize, &Normal)| {
        let eps = |x: f64| network.eps(p, x, network.data.modes[0][p], level.time);
        let x_start = |x: f64| (x - level.sigma() * eps(x)) / level.alpha();
        [x_start(mean), (x_start(1.0) - x_start(0.0)).powi(2) * variance]
    };
    x.iter().enumerate().map(of_pixel).collect()
}

/// The mean over pixels of a function of mean and variance.
pub(crate) fn over_pixels(pixels: &[Normal], of: impl Fn(f64, f64) -> f64) -> f64 {
    pixels.iter().map(|&[mean, variance]| of(mean, variance)).sum::<f64>() / pixels.len() as f64
}

/// E‖x‖₂ of independent normal numbers: ∫ (1 − E e^{−u²‖x‖²}) / u² du / √π from 0 on.
pub(crate) fn norm(pixels: &[Normal]) -> f64 {
    let squares: f64 = pixels.iter().map(|[mean, variance]| mean * mean + variance).sum();
    let transform = |s: f64| {
        let log = |&[mean, variance]: &Normal| {
            let wide = 1.0 + 2.0 * s * variance;
            -0.5 * wide.ln() - s * mean * mean / wide
        };
        pixels.iter().map(log).sum::<f64>()
    };
    // Evenly in log u, and beyond both ends as the integrand goes there.
    let (from, to, step) = (1e-4 / squares.sqrt(), 1e4 / squares.sqrt(), 0.02);
    let count = ((to / from).ln() / step).round() as usize;
    let at = |k: usize| from * (k as f64 * step).exp();
    let of = |u: f64| -transform(u * u).exp_m1() / u;
    let within: f64 = (0..=count).map(|k| if k % count == 0 { 0.5 } else { 1.0 } * step * of(at(k))).sum();
    (within + from * squares + 1.0 / at(count)) / std::f64::consts::PI.sqrt()
}

/// Mean energies of the low and of the high Haar bands.
pub(crate) fn energies(pixels: &[Normal], [_, height, width]: [usize; 3]) -> [f64; 2] {
    let (mut low, mut all) = (0.0, 0.0);
    for (row, column) in (0..height).step_by(2).flat_map(|row| (0..width).step_by(2).map(move |column| (row, column))) {
        let first = row * width + column;
        let block = [first, first + 1, first + width, first + width + 1].map(|p| pixels[p]);
        let mean: f64 = block.iter().map(|[mean, _]| mean).sum::<f64>() / 2.0;
        low += mean * mean + block.iter().map(|[_, variance]| variance).sum::<f64>() / 4.0;
        all += block.iter().map(|[mean, variance]| mean * mean + variance).sum::<f64>();
    }
    let blocks = (height * width / 4) as f64;
    [low / blocks, (all - low) / (3.0 * blocks)]
}
