//! Twelve steps of training with all draws given.

use super::support::{assert_near, assert_relative, cases, open, weights};
use ddpm_ip::checkpoint::{Progress, State};
use ddpm_ip::config::Config;
use ddpm_ip::data::Batch;
use ddpm_ip::net::network::Network;
use ddpm_ip::net::{Parameters, Spec};
use ddpm_ip::train::{Draws, Trainer};
use ddpm_math::{LossKind, Variance};

#[test]
fn golden_trajectory() {
    for case in cases("trajectories") {
        let salt = case["network"].as_str().unwrap();
        let Some(network) = super::support::network(salt) else { continue };
        let mut file = open(&case, "file");
        let images = file.floats("x_start").unwrap();
        let [steps, count, channels, size, _] = images.shape[..] else {
            panic!("x_start has shape {:?}", images.shape)
        };

        let number = |key: &str| case[key].as_f64().unwrap();
        let flag = |key: &str| case[key].as_bool().unwrap();
        let list =
            |key: &str| -> Vec<f64> { case[key].as_array().unwrap().iter().map(|v| v.as_f64().unwrap()).collect() };
        let mut config = Config::default();
        config.model.image_size = size;
        config.model.in_channels = channels;
        config.diffusion.noise_schedule = case["noise_schedule"].as_str().unwrap().parse().unwrap();
        config.diffusion.variance = if flag("learn_sigma") { Variance::LearnedRange } else { Variance::FixedLarge };
        config.diffusion.loss = if flag("rescale_learned_sigmas") { LossKind::RescaledMse } else { LossKind::Mse };
        config.perturbation.gamma = number("gamma");
        config.train.lr = number("lr");
        config.train.weight_decay = number("weight_decay");
        config.train.adam_betas = list("betas").try_into().unwrap();
        config.train.adam_eps = number("eps");
        config.train.ema_rate = list("ema");
        config.train.batch_size = count;

        let start = || Parameters::from_values(network.layout(), &weights(network.specs(), salt));
        let state = State {
            progress: Progress::default(),
            ema: config.train.ema_rate.iter().map(|&rate| (rate, start())).collect(),
            posthoc: Vec::new(),
            moments: [start().zeros_like(), start().zeros_like()],
            parameters: start(),
        };
        let specs = network.specs().to_vec();
        let mix = config.perturbation.mix(config.perturbation.gamma);
        let mut trainer = Trainer::new(config, network, Some(state)).unwrap();

        let t = file.integers("t").unwrap().values;
        let (eps, xi) = (file.floats("eps").unwrap().values, file.floats("xi").unwrap().values);
        let expected = file.doubles("loss_mse_vb_gradnorm_paramnorm").unwrap().values;
        let per_step = images.values.len() / steps;
        for (step, expected) in expected.chunks_exact(5).enumerate() {
            let of = |values: &[f32]| values[step * per_step..(step + 1) * per_step].to_vec();
            let draws = Draws {
                t: t[step * count..(step + 1) * count].iter().map(|&t| t as usize).collect(),
                weights: vec![1.0; count],
                mixes: vec![mix; count],
                eps: of(&eps),
                xi: Some(of(&xi)),
            };
            let batch = Batch { images: of(&images.values), labels: None, position: 0 };
            let report = trainer.train_step_with(&batch, draws).unwrap();
            let mean = |v: &[f64]| v.iter().sum::<f64>() / v.len() as f64;
            let actual = [
                mean(report.loss()),
                mean(report.term("mse").unwrap()),
                mean(report.term("vb").unwrap()),
                report.grad_norm.expect("a step's norm").get(),
                trainer.state().parameters.norm(),
            ];
            for ((what, actual), expected) in
                ["loss", "mse", "vb", "gradient norm", "parameter norm"].iter().zip(actual).zip(expected)
            {
                assert_relative(&format!("step {step}: {what}"), actual, *expected, 1e-3);
            }
        }

        let mut last = open(&case, "final");
        let state = trainer.state();
        let [m, v] = &state.moments;
        let norm = |v: &[f32]| v.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
        let sum = |v: &[f32]| v.iter().map(|&v| f64::from(v)).sum::<f64>();
        // A bias before a normalisation of single channels has no gradient but rounding noise, which AdamW turns into
        // small steps anywhere: such parameters are known by their moments, and only bounded.
        let moments = last.doubles("exp_avg_norm").unwrap().values;
        let noise = 1e-6 * moments.iter().map(|m| m * m).sum::<f64>().sqrt();
        let reach = |spec: &Spec| steps as f64 * number("lr") * (spec.len() as f64).sqrt();
        let mut check = |key: &str, values: Vec<Vec<f32>>, measure: &dyn Fn(&[f32]) -> f64| {
            let expected = last.doubles(key).unwrap().values;
            for (((spec, values), expected), moment) in specs.iter().zip(values).zip(expected).zip(&moments) {
                let (what, actual) = (format!("{key} of {}", spec.name), measure(&values));
                if *moment > noise {
                    assert_relative(&what, actual, expected, 1e-3);
                } else {
                    assert!((actual - expected).abs() <= reach(spec), "{what}: {actual:e} is far from {expected:e}");
                }
            }
        };
        check("norm", state.parameters.to_values(), &norm);
        check("exp_avg_norm", m.to_values(), &norm);
        check("exp_avg_sq_sum", v.to_values(), &sum);
        for (rate, ema) in &state.ema {
            check(&format!("ema_{rate}_norm"), ema.to_values(), &norm);
        }
        for ((spec, values), moment) in specs.iter().zip(state.parameters.to_values()).zip(&moments) {
            let key = format!("param/{}", spec.name);
            if last.has(&key) && *moment > noise {
                assert_near(&key, &values, &last.floats(&key).unwrap().values, 1e-3);
            }
        }
    }
}
