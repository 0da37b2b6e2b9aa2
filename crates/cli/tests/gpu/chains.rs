//! What is done with a trained network: chains, likelihoods, single calls, distances and instruments.

use super::machine::{assert_near, on_cpu, on_gpu, small};
use super::support::{Place, TINY};
use ddpm_ip::npz::{Npz, NpzWriter};
use serde_json::Value;

/// A network that answers something.
fn trained() -> Place {
    let place = Place::new();
    on_cpu(&place, &small("run", &["--steps", "5", "--lr", "0.02", "--label-dropout", "0.2"])).exits(0);
    place
}

/// The JSON that a call prints, on the GPU and on the processor.
fn reports(place: &Place, args: &[&str]) -> [Value; 2] {
    let args = [args, &["--json", "--quiet"]].concat();
    [on_gpu(place, &args), on_cpu(place, &args)].map(|ran| serde_json::from_str(&ran.exits(0).out()).unwrap())
}

#[test]
fn samples_are_the_processors() {
    let place = trained();
    let judge = "classifier-train --data-dir digits --image-size 8 --in-channels 1 --classifier-width 32 \
                 --classifier-depth 1 --classifier-channel-mult 1 --classifier-num-head-channels 32 \
                 --classifier-attention-resolutions 4 --diffusion-steps 10 --noise-schedule cosine --batch-size 4 --lr 0.01 \
                 --steps 3 --out judge";
    on_cpu(&place, &judge.split_whitespace().collect::<Vec<_>>()).exits(0);
    let guide = ["--classifier-path", "judge", "--classifier-scale", "4"];
    let guided = |sampler| [&["--sampler", sampler][..], &guide].concat();
    let [ddpm, ddim, unipc] = ["ddpm", "ddim", "unipc"].map(guided);
    let free = ["--guidance-scale", "3"];
    let from = ["--guidance-scale", "2.5", "--guide-with", "weak", "--sampler", "unipc"];
    let within = ["--guidance-interval", "0.3,4", "--correct", "es:1.1; dcw:low,0.1"];
    let [free_ddpm, free_heun] = ["ddpm", "heun"].map(|sampler| [&["--sampler", sampler][..], &free].concat());
    let (within, both) = ([&free_ddpm[..], &within].concat(), [&free_heun[..], &guide].concat());
    on_cpu(
        &place,
        &small("weak", &["--steps", "4", "--lr", "0.02", "--variance", "fixed-large", "--class-cond", "false"]),
    )
    .exits(0);
    let corrected = "es:1.1; shift:1; dcw:double,0.1,-0.05; noise:1.1";
    // All of a chain on the GPU, and in the last two, which look at whole images, the network alone.
    let calls = [
        ("ddpm", &["--sampler", "ddpm"][..]),
        ("ddim", &["--sampler", "ddim", "--eta", "0.5"]),
        ("unipc", &["--sampler", "unipc"]),
        ("heun", &["--sampler", "heun"]),
        ("churned", &["--sampler", "heun", "--churn", "2"]),
        ("corrected", &["--sampler", "ddpm", "--correct", corrected]),
        ("on pixels", &["--sampler", "heun", "--correct", "dcw:pixel,0.1; ideal-ip:0.3"]),
        ("guided ddpm", &ddpm),
        ("guided ddim", &ddim),
        ("guided unipc", &unipc),
        ("classifier-free ddpm", &free_ddpm),
        ("classifier-free heun", &free_heun),
        ("within an interval", &within),
        ("by both", &both),
        ("from another network", &from),
        ("shifted", &["--sampler", "ddim", "--correct", "time-shift:4,2"]),
        ("thresholded", &["--sampler", "ddim", "--dynamic-threshold", "0.9"]),
    ];
    let mut before = Vec::new();
    for (name, flags) in calls {
        let sample = ["sample", "--checkpoint", "run", "--num-samples", "3", "--timestep-respacing", "4", "--quiet"];
        let [gpu, cpu] = ["gpu", "cpu"].map(|device| format!("{name}-{device}.npz"));
        on_gpu(&place, &[&sample[..], flags, &["--out", &gpu]].concat()).exits(0);
        on_cpu(&place, &[&sample[..], flags, &["--out", &cpu]].concat()).exits(0);
        let [gpu, cpu] = [gpu, cpu].map(|file| Npz::open(&place.path(&file)).unwrap().bytes("arr_0").unwrap());
        assert_eq!((&gpu.shape[..], &cpu.shape[..]), (&[3, 8, 8, 1][..], &[3, 8, 8, 1][..]));
        let off: Vec<u8> = gpu.values.iter().zip(&cpu.values).map(|(a, b)| a.abs_diff(*b)).filter(|&d| d > 0).collect();
        // A value between two bytes may become either.
        assert!(off.len() <= 2 && off.iter().all(|&d| d == 1), "{name}: {off:?}");
        assert!(gpu.values != before, "{name} is a sampler of its own");
        before = gpu.values;
    }
}

#[test]
fn a_call_of_the_network_gives_the_processors_values() {
    let place = trained();
    let x: Vec<f32> = (0..192).map(|i| (i as f32 * 0.7).sin()).collect();
    ddpm_ip::file::write_atomic(&place.path("in.npz"), |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("x", &[3, 1, 8, 8], |push| push(&x))?;
        npz.array::<i64>("t", &[3], |push| push(&[0, 4, 9]))?;
        npz.array::<i64>("y", &[3], |push| push(&[7, 0, 3]))?;
        npz.finish()
    })
    .unwrap();
    let predict = ["predict", "--checkpoint", "run", "--input", "in.npz", "--output"];
    on_gpu(&place, &[&predict[..], &["gpu.npz"]].concat()).exits(0);
    on_cpu(&place, &[&predict[..], &["cpu.npz"]].concat()).exits(0);
    let [gpu, cpu] = ["gpu.npz", "cpu.npz"].map(|name| Npz::open(&place.path(name)).unwrap().floats("out").unwrap());
    assert_eq!((&gpu.shape[..], gpu.values.len()), (&[3, 2, 8, 8][..], cpu.values.len()));
    let most = cpu.values.iter().fold(0.0_f32, |most, v| most.max(v.abs()));
    assert!(most > 1e-3, "values of {most}");
    // No order of floats: what is not finite is not near.
    let near = |(a, b): (&f32, &f32)| (a - b).abs() <= 1e-5 * most;
    let off: Vec<_> = gpu.values.iter().zip(&cpu.values).filter(|&pair| !near(pair)).collect();
    assert!(off.is_empty(), "{off:?}");
}

#[test]
fn likelihoods_are_the_processors() {
    let place = trained();
    let nll = ["nll", "--checkpoint", "run", "--data-dir", "digits", "--num-samples", "3", "--timestep-respacing", "4"];
    let [gpu, cpu] = reports(&place, &[&nll[..], &["--batch-size", "3"]].concat());
    assert!(cpu["bits_per_dim"].as_f64().unwrap() > 0.1, "{cpu}");
    assert_near(&gpu, &cpu, 1e-5);
}

#[test]
fn distances_are_the_processors() {
    let place = trained();
    for (name, seed) in [("a.npz", "1"), ("b.npz", "2")] {
        let sample = ["sample", "--checkpoint", "run", "--num-samples", "6", "--timestep-respacing", "2", "--quiet"];
        on_cpu(&place, &[&sample[..], &["--seed", seed, "--out", name]].concat()).exits(0);
    }
    let [gpu, cpu] = reports(&place, &["evaluate", "a.npz", "b.npz", "--features", "grey", "--no-cache"]);
    assert!(cpu["fid"].as_f64().unwrap() > 1e-3, "{cpu}");
    assert_near(&gpu, &cpu, 1e-4);
}

#[test]
fn instruments_read_what_they_read_on_the_processor() {
    let place = Place::new();
    on_cpu(&place, &[&["train"], TINY, &["--steps", "5", "--lr", "0.01"]].concat()).exits(0);
    let bias = ["bias", "--checkpoint", "run", "--timestep-respacing", "3", "--num-samples", "20", "--quiet", "--out"];
    on_gpu(&place, &[&bias[..], &["gpu"]].concat()).exits(0);
    on_cpu(&place, &[&bias[..], &["cpu"]].concat()).exits(0);
    let [gpu, cpu] = ["gpu/bias.json", "cpu/bias.json"].map(|file| serde_json::from_str(&place.read(file)).unwrap());
    assert_near(&gpu, &cpu, 1e-4);
}
