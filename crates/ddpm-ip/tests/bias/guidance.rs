//! Guided chains where the answers that guide them are exact.

use super::exact::{Data, Exact, diffusion, largest, reverse};
use ddpm_ip::diffusion::Diffusion;
use ddpm_ip::net::NO_CLASS;
use ddpm_ip::sample::{Chain, Draws, Guidance, Predictor, Seeded, Subjects, Weak};
use ddpm_math::{Rule, Variance};

const ALL: [f64; 2] = [0.0, f64::INFINITY];

const RULES: [Rule; 6] = [
    Rule::Ddpm,
    Rule::Ddim { eta: 0.0 },
    Rule::Ddim { eta: 0.7 },
    Rule::DpmSolver { stochastic: true },
    Rule::UniPc,
    Rule::Heun(ddpm_math::Churn { amount: 5.0, least: 0.0, most: 0.0 }),
];

/// Where chains of a network end.
fn ends(
    network: &Exact,
    rule: Rule,
    corrections: &str,
    images: u64,
    label: Option<u32>,
    guidance: Option<&Guidance>,
) -> Vec<f32> {
    let Exact { data, diffusion, .. } = *network;
    let reverse = reverse(rule, corrections);
    let chain = Chain { diffusion, network, reverse: &reverse, guide: None, guidance, shape: data.shape };
    let images: Vec<u64> = (0..images).collect();
    let labels = label.map(|label| vec![label; images.len()]);
    let subjects = Subjects { images: &images, labels: labels.as_deref(), low_res: None, draws: &Seeded(6) };
    chain.run(subjects, |_, _, _| true).unwrap()
}

fn farthest(a: &[f32], b: &[f32]) -> f64 {
    largest(&a.iter().zip(b).map(|(a, b)| f64::from(a - b)).collect::<Vec<_>>())
}

#[test]
fn between_normal_distributions_the_mean_moves_by_w_less_1_times_their_distance() {
    let diffusion = diffusion("25", Variance::FixedLarge);
    let data = Data::gaussian();
    let inferior = Data { modes: vec![data.modes[0].iter().map(|m| 0.7 * m - 0.1).collect()], ..Data::gaussian() };
    for scale in [0.5, 2.0, 3.5] {
        let further = |(m, weak): (&f64, &f64)| m + (scale - 1.0) * (m - weak);
        let moved: Vec<f64> = data.modes[0].iter().zip(&inferior.modes[0]).map(further).collect();
        let led = Data { modes: vec![moved], ..Data::gaussian() };
        let weak = Exact::new(&inferior, &diffusion);
        let guidance = Guidance { rule: ddpm_math::Guidance { scale, interval: ALL }, weak: Weak::Network(&weak) };
        for rule in RULES {
            for corrections in ["", "es:1.03; noise:0.95"] {
                let guided = ends(&Exact::new(&data, &diffusion), rule, corrections, 40, None, Some(&guidance));
                let expected = ends(&Exact::new(&led, &diffusion), rule, corrections, 40, None, None);
                let off = farthest(&guided, &expected);
                assert!(off < 1e-4, "{rule:?}, {corrections}, w {scale}: {off}");
            }
        }
        let drawn = ends(&Exact::new(&data, &diffusion), Rule::Ddim { eta: 0.0 }, "", 4000, None, Some(&guidance));
        for p in 0..16 {
            let mean = drawn.iter().skip(p).step_by(16).map(|&v| f64::from(v)).sum::<f64>() / 4000.0;
            let error = (data.variance[p] / 4000.0).sqrt();
            assert!((mean - led.modes[0][p]).abs() < 4.5 * error, "w {scale}: {mean}, expected {}", led.modes[0][p]);
        }
    }
}

/// DDIM in double precision with the guided ε of one mode of a mixture.
fn guided_ddim(network: &Exact, x: &[f32], mode: u32, scale: f64, [low, high]: [f64; 2]) -> Vec<f64> {
    let Exact { data, diffusion, .. } = *network;
    let schedule = &diffusion.schedule;
    let mut x: Vec<f64> = x.iter().copied().map(f64::from).collect();
    for t in (0..schedule.len()).rev() {
        let level = schedule.level(t);
        let at: Vec<f32> = x.iter().map(|&v| v as f32).collect();
        let eps = |label: Option<u32>| -> Vec<f64> {
            let likely = network.likely(&at, level, label);
            let mean = |p: usize| data.modes.iter().zip(&likely).map(|(mode, r)| mode[p] * r).sum::<f64>();
            (0..x.len()).map(|p| network.eps(p, x[p], mean(p), schedule.times[t])).collect()
        };
        let (of_mode, of_all) = (eps(Some(mode)), eps(None));
        let noise = ((1.0 - level.alpha_bar) / level.alpha_bar).sqrt();
        let w = if low < noise && noise <= high { scale } else { 1.0 };
        let next = if t == 0 { 1.0 } else { schedule.alpha_bar[t - 1] };
        for p in 0..x.len() {
            let eps = w * of_mode[p] + (1.0 - w) * of_all[p];
            let x_start = (x[p] - (1.0 - level.alpha_bar).sqrt() * eps) / level.alpha_bar.sqrt();
            x[p] = next.sqrt() * x_start + (1.0 - next).sqrt() * eps;
        }
    }
    x
}

/// A mixture whose classes are its modes, which an image without class may be any of.
fn labelled<'a>(data: &'a Data, diffusion: &'a Diffusion) -> Exact<'a> {
    Exact { labelled: true, ..Exact::new(data, diffusion) }
}

#[test]
fn chains_are_led_away_from_the_mixture_of_all_classes_where_the_interval_says() {
    let (data, diffusion) = (Data::mixture(), diffusion("50", Variance::FixedLarge));
    let network = labelled(&data, &diffusion);
    let ddim = Rule::Ddim { eta: 0.0 };
    let mut before = Vec::new();
    for (scale, interval) in [(1.0, ALL), (2.0, ALL), (4.0, ALL), (4.0, [0.5, 3.0]), (4.0, [0.0, 0.8]), (0.0, ALL)] {
        let drawn = [true, false].map(|together| {
            let rule = ddpm_math::Guidance { scale, interval };
            let guidance = Guidance { rule, weak: Weak::Unconditional { together } };
            ends(&network, ddim, "", 20, Some(1), Some(&guidance))
        });
        assert!(drawn[0] == drawn[1], "w {scale}: one batch or two");
        for image in 0..20 {
            let mut noise = [0.0; 16];
            Seeded(6).initial(image, &mut noise);
            let expected = guided_ddim(&network, &noise, 1, scale, interval);
            let own = &drawn[0][16 * image as usize..][..16];
            let off = largest(&own.iter().zip(&expected).map(|(&a, b)| f64::from(a) - b).collect::<Vec<_>>());
            assert!(off < 2e-3, "w {scale}, {interval:?}: {off}");
        }
        assert!(farthest(&drawn[0], &before) > 0.01 || before.is_empty(), "w {scale}, {interval:?} does nothing");
        before.clone_from(&drawn[0]);
    }
    // w = 0 leaves nothing of the class.
    let all = ends(&network, ddim, "", 20, Some(NO_CLASS), None);
    assert!(farthest(&before, &all) < 1e-4);
}

#[test]
fn without_a_difference_there_is_no_guidance_to_the_last_bit() {
    let data = Data::mixture();
    for variance in [Variance::Learned, Variance::FixedLarge] {
        let diffusion = diffusion("10", variance);
        let network = labelled(&data, &diffusion);
        // The network itself; w = 1 and another; a level that no chain meets.
        let other = Exact::new(&data, &diffusion);
        for (scale, interval, weak) in [
            (5.0, ALL, Weak::Network(&network as &dyn Predictor)),
            (1.0, ALL, Weak::Unconditional { together: true }),
            (1.0, ALL, Weak::Network(&other)),
            (5.0, [1e6, f64::INFINITY], Weak::Unconditional { together: false }),
        ] {
            let guidance = Guidance { rule: ddpm_math::Guidance { scale, interval }, weak };
            // A learned variance is known at the timesteps alone, and of use to one sampler.
            for rule in if variance == Variance::Learned { &RULES[..1] } else { &RULES[..] } {
                let corrections = "es:1.02; dcw:pixel,0.1";
                let guided = ends(&network, *rule, corrections, 10, Some(2), Some(&guidance));
                assert!(guided == ends(&network, *rule, corrections, 10, Some(2), None), "{rule:?}, w {scale}");
            }
        }
    }
}
