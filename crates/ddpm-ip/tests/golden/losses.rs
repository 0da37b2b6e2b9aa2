//! Training losses with all draws given.

use super::support::{assert_near, cases, open};
use ddpm_ip::config::DiffusionConfig;
use ddpm_ip::diffusion::Diffusion;
use ddpm_math::{LossKind, Mode, Perturbation, Prediction, Respacing, Variance};
use serde_json::Value;

/// The process of a case, by the reference's switches.
fn diffusion(case: &Value) -> Diffusion {
    let flag = |key: &str| case[key].as_bool().unwrap_or(false);
    let respacing: Respacing = case["respacing"].as_str().unwrap_or("").parse().unwrap();
    let config = DiffusionConfig {
        diffusion_steps: case["diffusion_steps"].as_u64().unwrap() as usize,
        noise_schedule: case["noise_schedule"].as_str().unwrap().parse().unwrap(),
        timestep_respacing: respacing.clone(),
        prediction: if flag("predict_xstart") { Prediction::XStart } else { Prediction::Epsilon },
        variance: match (flag("learn_sigma"), flag("sigma_small")) {
            (true, _) => Variance::LearnedRange,
            (false, true) => Variance::FixedSmall,
            (false, false) => Variance::FixedLarge,
        },
        loss: match (flag("use_kl"), flag("rescale_learned_sigmas")) {
            (true, _) => LossKind::RescaledKl,
            (false, true) => LossKind::RescaledMse,
            (false, false) => LossKind::Mse,
        },
        rescale_timesteps: false,
    };
    Diffusion::new(&config, &respacing).unwrap()
}

#[test]
fn golden_losses() {
    for case in cases("losses") {
        let name = case["file"].as_str().unwrap();
        let diffusion = diffusion(&case);
        let mut file = open(&case, "file");
        let t: Vec<usize> = file.integers("t").unwrap().values.into_iter().map(|t| t as usize).collect();
        let rule =
            Perturbation { mode: Mode::Sampled, gamma: case["gamma"].as_f64().unwrap(), ..Perturbation::default() };
        let mixes = vec![rule.mix(rule.gamma); t.len()];
        let mut array = |key: &str| file.floats(key).unwrap().values;
        let noised = diffusion.noise(&array("x_start"), &t, &mixes, &array("eps"), Some(&array("xi")));
        assert_near(&format!("{name}: x_t"), &noised.x_t, &array("x_t"), 1e-6);

        let output = array("model_output");
        let mut grad = vec![0.0; output.len()];
        // The gradient is that of the mean loss.
        let weights = vec![1.0 / t.len() as f64; t.len()];
        let terms = diffusion.losses(&noised, 0..t.len(), &output, &weights, Some(&mut grad));
        let all = |term: &dyn Fn(&ddpm_ip::diffusion::Terms) -> Option<f64>| -> Option<Vec<f32>> {
            terms.iter().map(|terms| term(terms).map(|v| v as f32)).collect()
        };
        for (key, term) in [("loss", all(&|t| Some(t.loss))), ("mse", all(&|t| t.mse)), ("vb", all(&|t| t.vb))] {
            let key = format!("term_{key}");
            assert_eq!(term.is_some(), file.has(&key), "{name}: whether there is {key}");
            if let Some(term) = term {
                assert_near(&format!("{name}: {key}"), &term, &file.floats(&key).unwrap().values, 1e-5);
            }
        }
        let expected = file.floats("grad_model_output").unwrap().values;
        assert_near(&format!("{name}: gradient"), &grad, &expected, 1e-4);
    }
}
