//! Every option of the U-Net, beyond what the golden networks have.

use super::support::{cpu, with};
use ddpm_ip::config::Config;
use ddpm_ip::data::Batch;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Engine, Feed, Parameters, Spec};
use ddpm_ip::train::{Draws, Trainer};
use ddpm_math::{Domain, Stream};

fn unet(config: &Config) -> Unet {
    Unet::new(config.model.network(config.diffusion.variance).unwrap())
}

fn normal(count: usize, index: u64) -> Vec<f32> {
    let mut values = vec![0.0; count];
    Stream::new(11, Domain::Noise, index, 0).fill_normal(&mut values);
    values
}

/// Parameters without the zeros of a fresh network.
fn busy(network: &Unet) -> Parameters {
    let one = |(i, spec): (usize, &Spec)| {
        let scale = 0.5 / ((spec.len() / spec.shape[0]) as f32).sqrt();
        normal(spec.len(), 100 + i as u64).iter().map(|v| v * scale).collect()
    };
    let values: Vec<Vec<f32>> = network.specs().iter().enumerate().map(one).collect();
    Parameters::from_values(network.layout(), &values)
}

#[test]
fn every_option_runs_and_every_parameter_has_a_gradient() {
    let wide = ("channel_mult", "1,2");
    for settings in [
        &[("num_heads", "4"), ("num_heads_upsample", "2"), ("attention_resolutions", "8,4"), wide][..],
        &[("num_head_channels", "16"), ("attention_resolutions", "4"), ("use_new_attention_order", "true"), wide],
        &[("conv_resample", "false"), wide],
        &[("resblock_updown", "true"), wide],
        &[("use_scale_shift_norm", "false"), ("num_res_blocks", "2"), wide],
        &[("channel_mult", "0.5,1.5"), ("num_channels", "64")],
        &[("in_channels", "5"), ("variance", "learned-range"), wide],
        &[("class_cond", "true"), ("num_classes", "3"), wide],
        &[("arch", "superres"), ("small_size", "3"), wide],
        &[("arch", "ddim"), ("attention_resolutions", "4"), wide],
        &[("arch", "ddim"), ("conv_resample", "false"), ("channel_mult", "2,1")],
    ] {
        let config = with(settings);
        let network = unet(&config);
        let channels = config.model.in_channels;
        let x = normal(2 * channels * 64, 0);
        let labels = config.model.class_cond.then_some(&[0, 2][..]);
        let parameters = busy(&network);
        let half: Vec<f32> = x.iter().map(|v| v * 0.5).collect();
        let low_res = network.config().low_res.then_some(&half[..]);
        let outputs = network.config().out_channels;
        let engine = Engine::new(network, cpu());
        let feed = Feed { labels, low_res, ..Feed::new(&x, [8, 8], &[3.0, 17.0]) };
        let (mut gradient, _) = engine.gradient(&parameters, feed, true, |_, output, grad| {
            assert_eq!(output.len(), 2 * outputs * 64, "{settings:?}");
            grad.iter_mut().zip(output).for_each(|(grad, v)| *grad = 2.0 * v);
        });
        let gradient = Parameters::new(parameters.layout().clone(), gradient.values().to_vec());
        for (spec, gradient) in gradient.iter() {
            assert!(gradient.iter().all(|v| v.is_finite()), "{settings:?}: {}", spec.name);
            assert!(gradient.iter().any(|v| *v != 0.0), "{settings:?}: {} has no gradient", spec.name);
        }
    }
}

#[test]
fn the_layers_that_begin_at_zero_are_the_references() {
    let config = with(&[("channel_mult", "1,2"), ("attention_resolutions", "4"), ("resblock_updown", "true")]);
    let network = unet(&config);
    let parameters = Parameters::initial(network.layout(), 0);
    for (spec, values) in network.specs().iter().zip(parameters.to_values()) {
        let zero_module = ["out_layers.3.", "proj_out.", "out.2."].iter().any(|part| spec.name.contains(part))
            && !spec.name.contains("emb");
        let is_norm_bias = spec.name.strip_suffix(".bias").is_some_and(|layer| {
            let weight = format!("{layer}.weight");
            network.specs().iter().any(|s| s.name == weight && s.shape.len() == 1)
        });
        let zeros = values.iter().all(|v| *v == 0.0);
        assert_eq!(zeros, zero_module || is_norm_bias, "{}", spec.name);
    }
    let out = Engine::new(network, cpu()).forward(&parameters, Feed::new(&normal(64, 0), [8, 8], &[5.0]));
    assert!(out.iter().all(|v| *v == 0.0), "a fresh network predicts 0");
}

#[test]
fn importance_weights_weigh_each_image() {
    let moments = |images: &[usize], weights: &[f64]| {
        let config = with(&[]);
        let network = unet(&config);
        let mix = config.perturbation.mix(0.0);
        let mut trainer = Trainer::new(config, network, None).unwrap();
        let pick = |seed: u64| -> Vec<f32> { images.iter().flat_map(|&i| normal(64, seed + i as u64)).collect() };
        let batch = Batch { images: pick(0), labels: None, position: 0 };
        let t = images.iter().map(|&i| 3 + 9 * i).collect();
        let draws = Draws { t, weights: weights.to_vec(), mixes: vec![mix; images.len()], eps: pick(50), xi: None };
        let report = trainer.train_step_with(&batch, draws).unwrap();
        (report.mean_loss(), trainer.state().moments[0].to_values().concat())
    };
    // (2·l0 + 0·l1) / 2 is l0.
    let (alone, weighed) = (moments(&[0], &[1.0]), moments(&[0, 1], &[2.0, 0.0]));
    assert!((alone.0 - weighed.0).abs() < 1e-6);
    let norm = |v: &[f32]| v.iter().map(|&x| f64::from(x).powi(2)).sum::<f64>().sqrt();
    let off: Vec<f32> = alone.1.iter().zip(&weighed.1).map(|(a, b)| a - b).collect();
    assert!(norm(&off) < 1e-5 * norm(&alone.1) && norm(&alone.1) > 1e-3);
    assert!((moments(&[0, 1], &[1.0, 1.0]).0 - alone.0).abs() > 1e-4);
}
