use super::*;
use crate::beta::NoiseSchedule;
use crate::respace::Spacing;
use crate::reverse::{Pixel, ReverseStep};
use crate::variance::{Prediction, Variance};

const DDIM: Rule = Rule::Ddim { eta: 0.0 };
const DPM_SOLVER: Rule = Rule::DpmSolver { stochastic: false };
const SDE: Rule = Rule::DpmSolver { stochastic: true };
const HEUN: Rule = Rule::Heun(Churn { amount: 0.0, least: 0.0, most: 0.0 });
const CHURNED: Rule = Rule::Heun(Churn { amount: 20.0, least: 0.0, most: 0.0 });
const DETERMINISTIC: [Rule; 4] = [DDIM, DPM_SOLVER, Rule::UniPc, HEUN];
const STOCHASTIC: [Rule; 4] = [Rule::Ddpm, Rule::Ddim { eta: 1.0 }, SDE, CHURNED];

fn spaced(spacing: Spacing, count: usize) -> Schedule {
    Schedule::spaced(NoiseSchedule::Linear, 1000, spacing, count).unwrap()
}

fn assert_close(actual: f64, expected: f64) {
    assert!((actual - expected).abs() <= 1e-9 * expected.abs().max(1.0), "{actual} is not {expected}");
}

fn noised(level: Level, x_start: f64, eps: f64) -> f64 {
    level.alpha() * x_start + level.sigma() * eps
}

/// A sampler's stages with their coefficients.
struct Program(Vec<(Stage, ReverseStep<f64>)>);

impl Program {
    fn new(s: &Schedule, rule: Rule, first: usize) -> Self {
        let step = |stage: &Stage| ReverseStep::new(s, Prediction::Epsilon, Variance::FixedSmall, stage);
        Self(rule.stages(s, first).into_iter().map(|stage| (stage, step(&stage))).collect())
    }

    /// x after every step. `eps` answers for x at a noise level, `noise` is what a step draws.
    fn walk(&self, mut x: f64, eps: impl Fn(f64, Level) -> f64, noise: impl Fn(usize) -> f64) -> Vec<f64> {
        let (mut kept, mut x_start) = (0.0, [0.0; 2]);
        let mut all = Vec::new();
        for (stage, step) in &self.0 {
            let noise = noise(stage.step);
            if let Some([of_x, of_noise]) = stage.churn {
                x = of_x * x + of_noise * noise;
            }
            let prediction = eps(x, stage.level);
            let pixel = Pixel { x, prediction, values: f64::NAN, guidance: None, noise, x_start, kept };
            let stepped = step.step(pixel, None);
            (x, kept, x_start) = (stepped.next, stepped.kept, [stepped.x_start, x_start[0]]);
            if stage.ends_step {
                all.push(x);
            }
        }
        all
    }
}

/// Mean and variance of x after every step, where the first x has those of the data at its noise level. They are exact: x is
/// linear in every draw if the data are one Gaussian.
fn moments(s: &Schedule, rule: Rule, data: [f64; 2]) -> Vec<[f64; 2]> {
    let first = s.len() - 1;
    let program = Program::new(s, rule, first);
    let gaussian = Data(vec![[1.0, data[0], data[1]]]);
    let [mean, variance] = marginal(s.level(first), data);
    let walk = |draw: Option<usize>, x| {
        program.walk(x, |x, level| gaussian.eps(x, level), |step| if draw == Some(step) { 1.0 } else { 0.0 })
    };
    let means = walk(None, mean);
    let mut moments: Vec<[f64; 2]> = means.iter().map(|&mean| [mean, 0.0]).collect();
    let of_first = walk(None, mean + variance.sqrt());
    for moved in [of_first].into_iter().chain((0..s.len()).map(|step| walk(Some(step), mean))) {
        for ((of_step, mean), moved) in moments.iter_mut().zip(&means).zip(moved) {
            of_step[1] += (moved - mean).powi(2);
        }
    }
    moments
}

/// Mean and variance that data of that mean and variance have at a noise level.
fn marginal(level: Level, [mean, variance]: [f64; 2]) -> [f64; 2] {
    [level.alpha() * mean, level.alpha_bar * variance + level.sigma().powi(2)]
}

/// By how much a chain misses mean and variance at any level but the last, the data, where x is a mean.
fn missed(s: &Schedule, rule: Rule, data: [f64; 2]) -> f64 {
    let indices = (0..s.len() - 1).rev();
    let missed = moments(s, rule, data).into_iter().zip(indices).map(|(found, index)| {
        let expected = marginal(s.level(index), data);
        (found[0] - expected[0]).abs().max((found[1] / expected[1] - 1.0).abs())
    });
    missed.fold(0.0, f64::max)
}

/// Weight, mean and variance of each Gaussian that the data are a mixture of.
struct Data(Vec<[f64; 3]>);

impl Data {
    /// ε* = −σ times the score.
    fn eps(&self, x: f64, level: Level) -> f64 {
        let mode = |[weight, mean, variance]: [f64; 3]| {
            let variance = level.alpha_bar * variance + level.sigma().powi(2);
            let slope = (x - level.alpha() * mean) / variance;
            (weight * (-0.5 * slope.powi(2) * variance).exp() / variance.sqrt(), slope)
        };
        let modes = self.0.iter().map(|&m| mode(m));
        let (density, slope) = modes.fold((0.0, 0.0), |(d, s), (p, slope)| (d + p, s + p * slope));
        level.sigma() * slope / density
    }

    /// x at the end of the probability flow: Runge and Kutta's method of order 4 on dy/dλ = x̂_0 − y, y = x/α.
    fn flow(&self, x: f64, from: Level, to: Level, steps: usize) -> f64 {
        let slope = |lambda: f64, y: f64| {
            let level = Level { time: f64::NAN, alpha_bar: crate::schedule::alpha_bar_of(2.0 * lambda) };
            -level.sigma() / level.alpha() * self.eps(level.alpha() * y, level)
        };
        let h = (to.lambda() - from.lambda()) / steps as f64;
        let mut y = x / from.alpha();
        for i in 0..steps {
            let at = from.lambda() + h * i as f64;
            let a = slope(at, y);
            let b = slope(at + h / 2.0, y + h / 2.0 * a);
            let c = slope(at + h / 2.0, y + h / 2.0 * b);
            let d = slope(at + h, y + h * c);
            y += h / 6.0 * (a + 2.0 * b + 2.0 * c + d);
        }
        to.alpha() * y
    }
}

#[test]
fn solvers_converge_to_the_probability_flow_with_their_order() {
    // The last step, to the data, is one of order 1 by design. So what is compared is x at index 0, before that step.
    let data = Data(vec![[0.4, -0.6, 0.02], [0.6, 0.5, 0.06]]);
    let starts = [-1.7, -0.6, 0.1, 0.9, 2.1];
    let ends = spaced(Spacing::LogSnr, 2);
    let exact = starts.map(|x| data.flow(x, ends.level(1), ends.level(0), 5000));
    let error = |rule: Rule, steps: usize| {
        let s = spaced(Spacing::LogSnr, steps + 1);
        let program = Program::new(&s, rule, steps);
        let found = starts.map(|x| program.walk(x, |x, level| data.eps(x, level), |_| f64::NAN)[steps - 1]);
        found.iter().zip(exact).map(|(x, exact)| (x - exact).powi(2)).sum::<f64>().sqrt()
    };
    for (rule, least, most) in [(DDIM, 0.95, 1.05), (DPM_SOLVER, 1.9, 2.1), (HEUN, 1.9, 2.1), (Rule::UniPc, 2.9, 3.1)] {
        let errors = [80, 160, 320, 640].map(|steps| error(rule, steps));
        for pair in errors.windows(2) {
            let order = (pair[0] / pair[1]).log2();
            assert!((least..most).contains(&order), "{rule:?}: order {order}, errors {errors:?}");
        }
    }
}

#[test]
fn data_of_a_single_point_have_the_right_variance_at_every_level() {
    for spacing in [Spacing::Uniform, Spacing::Karras] {
        for rule in [&DETERMINISTIC[..], &STOCHASTIC].concat() {
            let missed = missed(&spaced(spacing, 7), rule, [0.3, 0.0]);
            assert!(missed < 1e-9, "{rule:?}, {spacing}: {missed}");
        }
    }
}

#[test]
fn gaussian_data_have_the_right_mean_and_variance_at_every_level_with_many_steps() {
    // With n steps less than (scale/n)^order is missed.
    for (rule, scale, order) in [
        (DDIM, 5.0, 1),
        (DPM_SOLVER, 4.0, 2),
        (HEUN, 7.0, 2),
        (Rule::UniPc, 6.0, 3),
        (Rule::Ddpm, 10.0, 1),
        (Rule::Ddim { eta: 1.0 }, 10.0, 1),
        (SDE, 7.0, 2),
        (CHURNED, 13.0, 2),
    ] {
        for steps in [10, 20, 40, 80, 160, 320] {
            let missed = missed(&spaced(Spacing::LogSnr, steps), rule, [0.3, 0.25]);
            assert!(missed < (scale / steps as f64).powi(order), "{rule:?}, {steps} steps: {missed}");
        }
    }
}

#[test]
fn right_answers_keep_deterministic_chains_on_their_line_from_any_index() {
    let (x_start, eps) = (0.7, -1.3);
    for spacing in [Spacing::Uniform, Spacing::Karras] {
        let s = spaced(spacing, 8);
        for rule in DETERMINISTIC {
            for first in 0..s.len() {
                let x = noised(s.level(first), x_start, eps);
                let all = Program::new(&s, rule, first).walk(x, |_, _| eps, |_| f64::NAN);
                assert_eq!(all.len(), first + 1);
                for (x, index) in all.iter().zip((0..first).rev()) {
                    assert_close(*x, noised(s.level(index), x_start, eps));
                }
                assert_close(all[first], x_start);
            }
        }
    }
}

#[test]
fn the_last_step_leads_to_the_predicted_clean_pixel() {
    let s = spaced(Spacing::Uniform, 6);
    for rule in [&DETERMINISTIC[..], &STOCHASTIC].concat() {
        let program = Program::new(&s, rule, 5);
        let answer = |x: f64, level: Level| if level.alpha_bar >= s.alpha_bar[0] { x - 0.2 } else { 0.4 };
        // The last step draws nothing, unless before its call.
        let noise = |step| if step == 5 && rule != CHURNED { f64::NAN } else { 0.1 };
        let all = program.walk(1.1, answer, noise);
        let (stage, _) = program.0.last().unwrap();
        let x = stage.churn.map_or(all[4], |[of_x, of_noise]| of_x * all[4] + of_noise * 0.1);
        let eps = answer(x, stage.level);
        assert_close(all[5], (x - stage.level.sigma() * eps) / stage.level.alpha());
    }
}

#[test]
fn each_step_calls_the_network_once_but_heuns_twice_until_the_last() {
    let s = spaced(Spacing::Karras, 9);
    for first in [0, 1, 8] {
        for rule in [&DETERMINISTIC[..], &STOCHASTIC].concat() {
            let stages = rule.stages(&s, first);
            let twice = matches!(rule, Rule::Heun(_));
            assert_eq!(stages.len(), if twice { 2 * first + 1 } else { first + 1 });
            for step in 0..=first {
                let of_step: Vec<&Stage> = stages.iter().filter(|stage| stage.step == step).collect();
                let index = first - step;
                assert!(of_step.iter().all(|stage| stage.index == index));
                let called_at: Vec<usize> = of_step.iter().map(|stage| stage.called_at).collect();
                assert_eq!(called_at, if twice && index > 0 { vec![index, index - 1] } else { vec![index] });
                let ends: Vec<bool> = of_step.iter().map(|stage| stage.ends_step).collect();
                assert_eq!(ends, if twice && index > 0 { vec![false, true] } else { vec![true] });
            }
            assert!(stages.is_sorted_by_key(|stage| stage.step));
            for stage in stages {
                assert_eq!(stage.level == s.level(stage.called_at), stage.churn.is_none());
                assert_eq!(stage.churn.is_some(), rule == CHURNED && stage.called_at == stage.index);
                assert_eq!(stage.draws(), rule.is_stochastic() && rule != CHURNED && stage.index > 0);
            }
        }
    }
    assert!(STOCHASTIC.iter().all(|rule| rule.is_stochastic()));
    assert!(!DETERMINISTIC.iter().any(|rule| rule.is_stochastic()));
    assert!(
        [&DETERMINISTIC[..], &STOCHASTIC].concat().iter().all(|&rule| rule.uses_variance() == (rule == Rule::Ddpm))
    );
}

#[test]
fn heun_is_the_two_stage_step_of_edm() {
    let (s, data) = (spaced(Spacing::Karras, 7), Data(vec![[0.5, -0.6, 0.02], [0.5, 0.5, 0.06]]));
    for first in [1, 4, 6] {
        let actual = Program::new(&s, HEUN, first).walk(0.8, |x, level| data.eps(x, level), |_| f64::NAN);
        // As it is published: in y = x/α, with the denoiser's D as the answer and noise k = σ/α.
        let mut y = 0.8 / s.level(first).alpha();
        let slope = |y: f64, level: Level| data.eps(level.alpha() * y, level);
        for index in (1..=first).rev() {
            let (from, to) = (s.level(index), s.level(index - 1));
            let h = to.sigma() / to.alpha() - from.sigma() / from.alpha();
            let d = slope(y, from);
            let d_next = slope(y + h * d, to);
            y += h * (0.5 * d + 0.5 * d_next);
            assert_close(actual[first - index], to.alpha() * y);
        }
    }
}

#[test]
fn dpm_solvers_steps_are_those_of_the_paper() {
    let s = spaced(Spacing::Karras, 7);
    let mix = |rule: Rule, step: usize| match rule.stages(&s, 6)[step].update {
        Update::Mix { corrector: None, keeps: false, next } => next,
        other => panic!("{other:?}"),
    };
    for step in 0..6 {
        let (from, to) = (s.level(6 - step), s.level(5 - step));
        let h = to.lambda() - from.lambda();
        // 1/2r.
        let slope = if step == 0 { 0.0 } else { 0.5 * h / (from.lambda() - s.level(7 - step).lambda()) };
        let ode = mix(DPM_SOLVER, step);
        assert_close(ode.x, to.sigma() / from.sigma());
        let gain = to.alpha() * (1.0 - (-h).exp());
        assert_close(ode.x_start[0], gain * (1.0 + slope));
        assert_close(ode.x_start[1], -gain * slope);
        assert_eq!((ode.kept, ode.x_start[2], ode.noise), (0.0, 0.0, 0.0));
        let sde = mix(SDE, step);
        // e^{−h} is the ratio of σ/α.
        assert_close(sde.x, to.sigma().powi(2) * from.alpha() / (from.sigma().powi(2) * to.alpha()));
        let gain = to.alpha() * (1.0 - (-2.0 * h).exp());
        assert_close(sde.x_start[0], gain * (1.0 + slope));
        assert_close(sde.x_start[1], -gain * slope);
        assert_eq!((sde.kept, sde.x_start[2]), (0.0, 0.0));
        assert_close(sde.noise, to.sigma() * (1.0 - (-2.0 * h).exp()).sqrt());
    }
    let last = Mixture { x_start: [1.0, 0.0, 0.0], ..Mixture::default() };
    assert_eq!([DPM_SOLVER, SDE].map(|rule| mix(rule, 6)), [last; 2]);
}

#[test]
fn unipc_predicts_as_dpm_solver_and_corrects_as_in_the_paper() {
    let s = spaced(Spacing::Karras, 7);
    let solver = DPM_SOLVER.stages(&s, 6);
    for (stage, solver) in Rule::UniPc.stages(&s, 6).into_iter().zip(solver) {
        let Update::Mix { corrector, keeps: true, next } = stage.update else { panic!("{stage:?}") };
        assert_eq!(solver.update, Update::Mix { corrector: None, keeps: false, next });
        assert_eq!(corrector.is_some(), stage.step > 0);
        let Some(corrector) = corrector else { continue };
        let (from, to) = (s.level(stage.index + 1), stage.level);
        let h = to.lambda() - from.lambda();
        let e = (-h).exp() - 1.0;
        let gain = -to.alpha() * e;
        let [newest, oldest] = if stage.step == 1 {
            [0.5 * gain, 0.0]
        } else {
            let r = (s.level(stage.index + 2).lambda() - from.lambda()) / h;
            let g1 = e / -h - 1.0;
            let g2 = g1 / -h - 0.5;
            [-to.alpha() * (2.0 * g2 - r * g1) / (1.0 - r), -to.alpha() * (g1 - 2.0 * g2) / (1.0 - r) / r]
        };
        assert_eq!((corrector.x, corrector.noise), (0.0, 0.0));
        assert_close(corrector.kept, to.sigma() / from.sigma());
        assert_close(corrector.x_start[0], newest);
        assert_close(corrector.x_start[1], gain - newest - oldest);
        assert_close(corrector.x_start[2], oldest);
    }
}

#[test]
fn unipcs_corrector_is_exact_where_the_clean_pixel_is_a_parabola_in_lambda() {
    let s = spaced(Spacing::Karras, 7);
    let (a, b, c) = (0.3, -0.2, 0.05);
    let x_start = |level: Level| a + b * level.lambda() + c * level.lambda().powi(2);
    // d(x/σ)/dλ = e^λ x̂_0, whose integral is e^λ times this.
    let integral = |level: Level| {
        let lambda = level.lambda();
        lambda.exp() * (a + b * (lambda - 1.0) + c * (lambda.powi(2) - 2.0 * lambda + 2.0))
    };
    for index in 0..5 {
        let [to, from, before] = [0, 1, 2].map(|i| s.level(index + i));
        let corrector = unipc_corrector(from, to, Some(before));
        let mixed = corrector.kept * 0.4
            + [to, from, before].iter().zip(corrector.x_start).map(|(&at, c)| c * x_start(at)).sum::<f64>();
        assert_close(mixed, to.sigma() * (0.4 / from.sigma() + integral(to) - integral(from)));
    }
}

#[test]
fn churn_raises_the_noise_of_levels_within_its_bounds_alone() {
    let s = spaced(Spacing::Karras, 12);
    let ratio = |level: Level| level.sigma() / level.alpha();
    let churned = |amount, least, most, first| {
        let stages = Rule::Heun(Churn { amount, least, most }).stages(&s, first);
        stages.into_iter().filter(|stage| stage.churn.is_some()).collect::<Vec<_>>()
    };
    let (least, most) = (ratio(s.level(3)), ratio(s.level(7)));
    let found = churned(3.0, least, most, 11);
    assert_eq!(found.iter().map(|stage| stage.index).collect::<Vec<_>>(), [7, 6, 5, 4, 3]);
    for stage in found {
        let [of_x, of_noise] = stage.churn.unwrap();
        let from = s.level(stage.index);
        // 3 over 12 steps.
        assert_close(ratio(stage.level), 1.25 * ratio(from));
        assert_close(of_x * from.alpha(), stage.level.alpha());
        assert_close((of_x * from.sigma()).hypot(of_noise), stage.level.sigma());
        assert!((s.level_at(stage.level.time).alpha_bar / stage.level.alpha_bar - 1.0).abs() < 1e-9);
        assert!(stage.level.time > from.time);
    }
    // A chain that begins further down has as much of it at each step; there is a limit.
    assert_close(ratio(churned(3.0, least, most, 7)[0].level), 1.25 * most);
    assert_close(ratio(churned(1e3, least, most, 11)[0].level), std::f64::consts::SQRT_2 * most);
    // Without an upper bound all are churned; the first has no timestep to be called at but the last.
    let all = churned(3.0, 0.0, 0.0, 11);
    assert_eq!((all.len(), all[0].level.time), (12, 999.0));
    assert!(churned(0.0, 0.0, 0.0, 11).is_empty());
}

#[test]
fn coefficients_are_finite_where_a_chain_begins_with_pure_noise() {
    let s = Schedule::spaced(NoiseSchedule::Linear, 20, Spacing::Uniform, 5).unwrap();
    assert!(s.ends_in_pure_noise());
    for rule in [DPM_SOLVER, SDE, Rule::UniPc] {
        for stage in rule.stages(&s, 4) {
            let Update::Mix { corrector, next, .. } = stage.update else { panic!("{stage:?}") };
            for m in corrector.into_iter().chain([next]) {
                let all = [&[m.x, m.kept, m.noise][..], &m.x_start].concat();
                assert!(all.iter().all(|v| v.is_finite()), "{rule:?}: {m:?}");
            }
        }
    }
}
