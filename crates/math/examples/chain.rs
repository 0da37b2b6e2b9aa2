//! Sampling chains of single pixels whose network is a formula, for comparisons with other programs.
//!
//! ```text
//! cargo run --release -p ddpm-math --example chain -- SAMPLER SPACING STEPS [SCHEDULE]
//! ```
//!
//! SAMPLER is one of ddim, ddim-stochastic (η = 1), dpm-solver++, dpm-solver++-sde, unipc and heun. With uniform SPACING,
//! STEPS may be any respacing, such as ddim10. Prints JSON: `nodes`, time and ᾱ of each step from the noisiest, and `x`, the
//! pixels before the first step and after each.
//!
//! The network is told whole timesteps, half to even. Its answer is ε(x, t) = (x − √ᾱ_t D)/√(1 − ᾱ_t) with
//! D = 0.8 tanh(1.5 x + sin(0.003 t)). Step k from 0 on adds the noise 1.4 sin(7 k + 3 i + 1) to pixel i.

#![expect(clippy::print_stdout, clippy::unwrap_used, reason = "a program for developers")]

use ddpm_math::{Churn, NoiseSchedule, Pixel, Prediction, ReverseStep, Rule, Schedule, Spacing, Variance};

const STARTS: [f64; 4] = [-1.5, -0.4, 0.3, 1.2];

fn main() {
    let words: Vec<String> = std::env::args().skip(1).collect();
    let rule = match words[0].as_str() {
        "ddim" => Rule::Ddim { eta: 0.0 },
        "ddim-stochastic" => Rule::Ddim { eta: 1.0 },
        "dpm-solver++" => Rule::DpmSolver { stochastic: false },
        "dpm-solver++-sde" => Rule::DpmSolver { stochastic: true },
        "unipc" => Rule::UniPc,
        "heun" => Rule::Heun(Churn::default()),
        other => panic!("no sampler {other}"),
    };
    let noise_schedule: NoiseSchedule = words.get(3).map_or("linear", |name| name).parse().unwrap();
    let schedule = match words[1].parse().unwrap() {
        Spacing::Uniform => Schedule::new(noise_schedule, 1000, &words[2].parse().unwrap()),
        spacing => Schedule::spaced(noise_schedule, 1000, spacing, words[2].parse().unwrap()),
    }
    .unwrap();
    let steps = schedule.len();

    let eps = |x: f64, time: f64| {
        let level = schedule.level_at(time.round_ties_even());
        let x_start = 0.8 * (1.5 * x + (0.003 * level.time).sin()).tanh();
        (x - level.alpha() * x_start) / level.sigma()
    };
    let mut all = vec![STARTS];
    // x, the x that is kept and the earlier x̂_0, pixel by pixel.
    let mut state = STARTS.map(|x| (x, 0.0, [0.0; 2]));
    for stage in rule.stages(&schedule, steps - 1) {
        let step = ReverseStep::<f64>::new(&schedule, Prediction::Epsilon, Variance::FixedSmall, &stage);
        for (i, (x, kept, x_start)) in state.iter_mut().enumerate() {
            let pixel = Pixel {
                x: *x,
                prediction: eps(*x, stage.level.time),
                values: 0.0,
                guidance: None,
                noise: 1.4 * ((7 * stage.step + 3 * i + 1) as f64).sin(),
                x_start: *x_start,
                kept: *kept,
            };
            let stepped = step.step(pixel, None);
            (*x, *kept, *x_start) = (stepped.next, stepped.kept, [stepped.x_start, x_start[0]]);
        }
        if stage.ends_step {
            all.push(state.map(|(x, ..)| x));
        }
    }
    let nodes: Vec<[f64; 2]> = (0..steps).rev().map(|i| [schedule.times[i], schedule.alpha_bar[i]]).collect();
    println!("{}", serde_json::json!({ "nodes": nodes, "x": all }));
}
