//! bf16, f16 with its loss scale, and blocks that are computed again.

use super::support::{assert_same, cpu, tensors, train, trained, with};
use ddpm_ip::Event;
use ddpm_ip::sample::{Job, run};
use std::path::Path;
use std::sync::atomic::AtomicBool;

/// A network with every kind of stage and state.
const WHOLE: &[(&str, &str)] = &[
    ("channel_mult", "1,2"),
    ("num_res_blocks", "2"),
    ("attention_resolutions", "4"),
    ("num_heads", "2"),
    ("dropout", "0.2"),
    ("resblock_updown", "true"),
    ("class_cond", "true"),
    ("variance", "learned-range"),
    ("loss", "rescaled-mse"),
];

fn floats(bytes: &[u8]) -> Vec<f64> {
    bytes.chunks_exact(4).map(|b| f64::from(f32::from_le_bytes(b.try_into().unwrap()))).collect()
}

fn norm(values: impl Iterator<Item = f64>) -> f64 {
    values.map(|v| v * v).sum::<f64>().sqrt()
}

/// How far the first moments (a sum of gradients) of two checkpoints are apart, as a share of their norm.
fn moments_apart(a: &Path, b: &Path) -> f64 {
    let moments = |checkpoint: &Path| -> Vec<f64> {
        let all = tensors(checkpoint).into_iter().filter(|(name, _)| name.contains("exp_avg/"));
        all.flat_map(|(_, bytes)| floats(&bytes)).collect()
    };
    let (a, b) = (moments(a), moments(b));
    assert_eq!(a.len(), b.len());
    norm(a.iter().zip(&b).map(|(a, b)| a - b)) / norm(a.into_iter())
}

#[test]
fn blocks_computed_again_give_the_bits_of_blocks_kept() {
    let folder = tempfile::tempdir().unwrap();
    for precision in ["f32", "bf16", "f16"] {
        for scale_shift in ["true", "false"] {
            let run = |again: &str| {
                let more = [("precision", precision), ("use_checkpoint", again), ("steps", "3")];
                let norm = [("use_scale_shift_norm", scale_shift)];
                let place = folder.path().join([precision, scale_shift, again].join("-"));
                trained(&with(&[WHOLE, &more, &norm].concat()), &place)
            };
            assert_same(&run("false"), &run("true"));
        }
    }
}

/// AdamW hardly notices a factor in the gradients, its moments do.
#[test]
fn half_precisions_have_the_gradients_of_f32() {
    let folder = tempfile::tempdir().unwrap();
    let run = |precision: &str| {
        let config = with(&[WHOLE, &[("precision", precision), ("steps", "1")]].concat());
        trained(&config, &folder.path().join(precision))
    };
    let exact = run("f32");
    for (precision, bound) in [("bf16", 3e-2), ("f16", 4e-3)] {
        let apart = moments_apart(&exact, &run(precision));
        assert!(apart < bound, "{precision}: {apart}");
    }
}

#[test]
fn half_precisions_train_to_where_f32_trains() {
    let folder = tempfile::tempdir().unwrap();
    let losses = |precision: &str| {
        let more = [("precision", precision), ("steps", "120"), ("train.batch_size", "16")];
        let (outcome, events) = train(&with(&[WHOLE, &more].concat()), &folder.path().join(precision));
        outcome.unwrap();
        let loss = |event: &Event| if let Event::Step { loss, .. } = event { Some(*loss) } else { None };
        events.iter().filter_map(loss).collect::<Vec<f64>>()
    };
    let mean = |losses: &[f64]| losses.iter().sum::<f64>() / losses.len() as f64;
    let f32 = losses("f32");
    let (before, after) = (mean(&f32[..20]), mean(&f32[100..]));
    assert!(after < 0.6 * before, "{before} to {after}");
    for precision in ["bf16", "f16"] {
        let half = losses(precision);
        assert!(f32 != half, "{precision} rounds");
        // The same draws: step by step the losses stay together, and they fall.
        for (step, (a, b)) in f32.iter().zip(&half).enumerate() {
            assert!((a - b).abs() < 0.1 * a, "{precision}, step {step}: {a} and {b}");
        }
        assert!((mean(&half[100..]) - after).abs() < 0.02 * after, "{precision}: {} and {after}", mean(&half[100..]));
    }
}

/// With a scale that grows so fast, every few steps have a gradient that f16 cannot hold.
#[test]
fn gradients_that_overflow_f16_change_nothing_and_lower_the_scale() {
    let folder = tempfile::tempdir().unwrap();
    let config = |steps: &str| {
        with(
            &[WHOLE, &[("precision", "f16"), ("fp16_scale_growth", "3"), ("steps", steps), ("log_interval", "1")]]
                .concat(),
        )
    };
    let (outcome, events) = train(&config("14"), &folder.path().join("straight"));
    outcome.unwrap();
    let left_out = events.iter().filter(|e| matches!(e, Event::Notice(text) if text.contains("skipped"))).count();
    let logged = |key: &str| -> Vec<f64> {
        let value = |event: &Event| {
            let Event::Log(line) = event else { return None };
            line.iter().find(|(k, _)| k == key).map(|(_, v)| *v)
        };
        events.iter().filter_map(value).collect()
    };
    let scales = logged("lg_loss_scale");
    assert!((scales.len(), scales[0]) == (14, 20.0) && left_out > 0 && left_out < 12, "{left_out}: {scales:?}");
    for (step, pair) in scales.windows(2).enumerate() {
        assert!(pair[1] == pair[0] + 3.0 || pair[1] == pair[0] - 1.0, "step {step}: {scales:?}");
    }
    // A step that is left out changes no parameter.
    let norms = logged("param_norm");
    let mut kept = 0;
    for (step, pair) in norms.windows(2).enumerate() {
        let overflowed = scales.get(step + 2).is_some_and(|next| *next < scales[step + 1]);
        kept += usize::from(overflowed);
        assert!(step + 2 >= scales.len() || overflowed == (pair[0] == pair[1]), "step {step}: {norms:?}");
    }
    assert!(kept > 0);
    let newest = |run: &str| folder.path().join(run).join("checkpoints/step_000014");
    let progress = ddpm_ip::checkpoint::progress(&newest("straight")).unwrap();
    assert_eq!(progress.updates, Some(14 - left_out as u64));
    trained(&config("9"), &folder.path().join("resumed"));
    assert_same(&newest("straight"), &trained(&config("14"), &folder.path().join("resumed")));
}

#[test]
fn bf16_resumes_and_samples_as_exactly_as_f32() {
    resumes_and_samples_exactly("bf16");
}

#[test]
fn f16_resumes_and_samples_as_exactly_as_f32() {
    resumes_and_samples_exactly("f16");
}

fn resumes_and_samples_exactly(precision: &str) {
    let folder = tempfile::tempdir().unwrap();
    let config = |steps: &str| with(&[WHOLE, &[("precision", precision), ("steps", steps)]].concat());
    let straight = trained(&config("6"), &folder.path().join("straight"));
    trained(&config("3"), &folder.path().join("resumed"));
    assert_same(&straight, &trained(&config("6"), &folder.path().join("resumed")));
    let sampled = |batch: &str| {
        let out = folder.path().join(format!("{batch}.npz"));
        let config =
            with(&[WHOLE, &[("precision", precision), ("num_classes", "10"), ("sample.batch_size", batch)]].concat());
        let job = Job {
            checkpoint: straight.clone(),
            config,
            out: Some(out.clone()),
            grid: None,
            order: ddpm_ip::sample::Order::default(),
            overwrite: true,
        };
        run(&job, cpu(), &AtomicBool::new(false), &mut |_| {}).unwrap();
        std::fs::read(out).unwrap()
    };
    assert!(sampled("1") == sampled("5"));
}
