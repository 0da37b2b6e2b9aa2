//! The reference's command lines, word for word after `python scripts/`, with sizes and numbers of steps cut down.

use super::support::{Place, Ran, names};
use serde_json::Value;

/// Those of the reference's README.
const TRAINING: [(&str, &str); 5] = [
    (
        "cifar10",
        "image_train.py --input_pertub 0.15 --data_dir PATH_TO_DATASET \
         --image_size 32 --use_fp16 True --num_channels 128 --num_head_channels 32 --num_res_blocks 3 \
         --attention_resolutions 16,8 --resblock_updown True --use_new_attention_order True \
         --learn_sigma True --dropout 0.3 --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True \
         --rescale_learned_sigmas True --schedule_sampler loss-second-moment --lr 1e-4 --batch_size 64",
    ),
    (
        "imagenet32",
        "image_train.py --input_pertub 0.1 --data_dir PATH_TO_DATASET \
         --image_size 32 --use_fp16 True --num_channels 128 --num_head_channels 32 --num_res_blocks 3 \
         --attention_resolutions 16,8 --resblock_updown True --use_new_attention_order True \
         --learn_sigma True --dropout 0.3 --diffusion_steps 1000 --noise_schedule cosine \
         --rescale_learned_sigmas True --schedule_sampler loss-second-moment --lr 1e-4 --batch_size 128",
    ),
    (
        "lsun-tower64",
        "image_train.py --input_pertub 0.1 --data_dir PATH_TO_DATASET \
         --image_size 64 --use_fp16 True --num_channels 192 --num_head_channels 64 --num_res_blocks 3 \
         --attention_resolutions 32,16,8 --resblock_updown True --use_new_attention_order True \
         --learn_sigma True --dropout 0.1 --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True \
         --rescale_learned_sigmas True --schedule_sampler loss-second-moment --lr 1e-4 --batch_size 16",
    ),
    (
        "celeba64",
        "image_train.py --input_pertub 0.1 --data_dir PATH_TO_DATASET \
         --image_size 64 --use_fp16 True --num_channels 192 --num_head_channels 64 --num_res_blocks 3 \
         --attention_resolutions 32,16,8 --resblock_updown True --use_new_attention_order True \
         --learn_sigma True --dropout 0.1 --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True \
         --rescale_learned_sigmas True --schedule_sampler loss-second-moment --lr 1e-4 --batch_size 16",
    ),
    (
        "ffhq128",
        "image_train.py --input_pertub 0.1 --data_dir PATH_TO_DATASET \
         --image_size 128 --use_fp16 True --num_channels 256 --num_head_channels 64 --num_res_blocks 3 \
         --attention_resolutions 32,16,8 --resblock_updown True --use_new_attention_order True \
         --learn_sigma True --dropout 0.1 --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True \
         --rescale_learned_sigmas True --schedule_sampler loss-second-moment --lr 1e-4 --batch_size 8",
    ),
];

/// Those of the reference's README.
const SAMPLING: [(&str, &str); 3] = [
    (
        "cifar10",
        "image_sample.py --image_size 32 --timestep_respacing 100 --model_path PATH_TO_CHECKPOINT \
     --num_channels 128 --num_head_channels 32 --num_res_blocks 3 --attention_resolutions 16,8 \
     --resblock_updown True --use_new_attention_order True --learn_sigma True --dropout 0.3 \
     --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True --batch_size 256 --num_samples 50000",
    ),
    (
        "lsun-tower64",
        "image_sample.py --image_size 64 --timestep_respacing 100 --model_path PATH_TO_CHECKPOINT \
     --use_fp16 True --num_channels 192 --num_head_channels 64 --num_res_blocks 3 \
     --attention_resolutions 32,16,8 --resblock_updown True --use_new_attention_order True \
     --learn_sigma True --dropout 0.1 --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True \
     --rescale_learned_sigmas True --batch_size 256 --num_samples 50000",
    ),
    (
        "ffhq128",
        "image_sample.py --image_size 128 --timestep_respacing 100 --model_path PATH_TO_CHECKPOINT \
     --use_fp16 True --num_channels 256 --num_head_channels 64 --num_res_blocks 3 \
     --attention_resolutions 32,16,8 --resblock_updown True --use_new_attention_order True \
     --learn_sigma True --dropout 0.1 --diffusion_steps 1000 --noise_schedule cosine --use_scale_shift_norm True \
     --rescale_learned_sigmas True --batch_size 128 --num_samples 50000",
    ),
];

/// Those of the guided-diffusion README, from which the reference has its other scripts; its variables are filled in.
const CLASSIFIER_TRAINING: &str = "classifier_train.py --data_dir path/to/imagenet \
    --iterations 300000 --anneal_lr True --batch_size 256 --lr 3e-4 --save_interval 10000 --weight_decay 0.05 \
    --image_size 128 --classifier_attention_resolutions 32,16,8 --classifier_depth 2 --classifier_width 128 \
    --classifier_pool attention --classifier_resblock_updown True --classifier_use_scale_shift_norm True";
const CLASSIFIER_SAMPLING: [&str; 2] = [
    "classifier_sample.py --model_path /path/to/model.pt --classifier_path path/to/classifier.pt \
     --attention_resolutions 32,16,8 --class_cond True --image_size 128 --learn_sigma True --num_channels 256 \
     --num_heads 4 --num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True \
     --image_size 128 --classifier_attention_resolutions 32,16,8 --classifier_depth 2 --classifier_width 128 \
     --classifier_pool attention --classifier_resblock_updown True --classifier_use_scale_shift_norm True \
     --classifier_scale 1.0 --classifier_use_fp16 True \
     --batch_size 4 --num_samples 50000 --timestep_respacing ddim25 --use_ddim True",
    "classifier_sample.py --attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 --image_size 128 \
     --learn_sigma True --noise_schedule linear --num_channels 256 --num_heads 4 --num_res_blocks 2 \
     --resblock_updown True --use_fp16 True --use_scale_shift_norm True --classifier_scale 0.5 \
     --classifier_path path/to/classifier.pt --model_path /path/to/model.pt \
     --batch_size 4 --num_samples 100 --timestep_respacing 250",
];
const ENLARGING: &str = "super_res_sample.py --attention_resolutions 32,16,8 --class_cond True --diffusion_steps 1000 \
    --large_size 256  --small_size 64 --learn_sigma True --noise_schedule linear --num_channels 192 --num_heads 4 \
    --num_res_blocks 2 --resblock_updown True --use_fp16 True --use_scale_shift_norm True \
    --model_path models/64_256_upsampler.pt --base_samples 64_samples.npz \
    --batch_size 4 --num_samples 100 --timestep_respacing 250";

/// What is cut down of networks and batches; the last of two flags of a name counts.
const SMALL: &str = "--image_size 32 --num_channels 32 --num_res_blocks 1 --batch_size 2";

/// What is cut down of training.
const SHORT: &str = "--steps 1 --grid_images 0";

/// A line of the reference's, on files of ours, with more at its end.
fn words(line: &str, paths: &[(&str, &str)], more: &[&str]) -> Vec<String> {
    let path = |word: &str| paths.iter().find(|(theirs, _)| *theirs == word).map_or(word, |(_, ours)| ours).to_string();
    let mut words: Vec<String> = line.split_whitespace().map(path).collect();
    words[0] = words[0].strip_suffix(".py").unwrap().to_string();
    words.extend(more.iter().flat_map(|flags| flags.split_whitespace()).map(String::from));
    words
}

fn run(place: &Place, words: &[String]) -> Ran {
    place.run(&words.iter().map(String::as_str).collect::<Vec<_>>()).exits(0)
}

/// A run of `line` in `out`, and PyTorch's files of it beside.
fn train(place: &Place, line: &str, out: &str, more: &[&str]) -> Ran {
    let paths = [("PATH_TO_DATASET", "images"), ("path/to/imagenet", "images")];
    let ran = run(place, &words(line, &paths, &[more, &["--out", out]].concat()));
    place.run(&["convert", out, &format!("{out}.pth")]).exits(0);
    ran
}

/// Six images of two classes, named as the reference's loader wants them.
fn images(place: &Place) {
    std::fs::create_dir(place.path("images")).unwrap();
    for i in 0..6u8 {
        let pixels = image::RgbImage::from_fn(40, 36, |x, y| image::Rgb([x as u8 * 6, y as u8 * 7, 40 * i]));
        let class = ["cat", "dog"][usize::from(i) % 2];
        pixels.save(place.path(&format!("images/{class}_{i}.png"))).unwrap();
    }
}

fn shape(place: &Place, file: &str) -> Vec<usize> {
    ddpm_ip::npz::Npz::open(&place.path(file)).unwrap().bytes("arr_0").unwrap().shape
}

#[test]
fn the_readmes_training_and_sampling_lines_run() {
    let place = Place::new();
    images(&place);
    for (name, line) in TRAINING {
        let ran = train(&place, line, name, &[SMALL, SHORT, "--num_head_channels 32"]);
        assert!(ran.err().contains("bf16"), "{}", ran.err());
        // Without the cuts it is the preset's network.
        let dry = |words: &[String]| -> Value {
            let words: Vec<&str> = words.iter().map(String::as_str).collect();
            serde_json::from_str(&place.run(&words).exits(0).out()).unwrap()
        };
        let extra = ["--dry-run --json --allow_upscale --batch_size 2"];
        let theirs = dry(&words(line, &[("PATH_TO_DATASET", "images")], &extra));
        let preset = format!("train.py --preset {name} --data_dir images");
        let ours = dry(&words(&preset, &[], &extra));
        for section in ["diffusion", "perturbation"] {
            assert_eq!(theirs["config"][section], ours["config"][section], "{name}: {section}");
        }
        assert_eq!(theirs["parameters"], ours["parameters"], "{name}");
    }
    for (name, line) in SAMPLING {
        let checkpoint = format!("{name}.pth");
        let checkpoint = [("PATH_TO_CHECKPOINT", checkpoint.as_str())];
        let cut = [SMALL, "--num_head_channels 32 --num_samples 3 --timestep_respacing 2"];
        run(&place, &words(line, &checkpoint, &cut));
        assert_eq!(shape(&place, "samples_3x32x32x3.npz"), [3, 32, 32, 3]);
        std::fs::remove_file(place.path("samples_3x32x32x3.npz")).unwrap();
    }
    // Of OpenAI's variables.
    let line = TRAINING[0].1.replace("PATH_TO_DATASET", "images");
    let line = words(&line, &[], &[SMALL, SHORT, "--num_head_channels 32"]);
    let line: Vec<&str> = line.iter().map(String::as_str).collect();
    place.run_with(&[("OPENAI_LOGDIR", "logs")], &line).exits(0);
    assert!(place.path("logs/progress.csv").exists());
}

#[test]
fn classifiers_guide_and_super_resolution_enlarges() {
    let place = Place::new();
    images(&place);
    let conditional = TRAINING[0].1.replace("--input_pertub 0.15", "--class_cond True --num_heads 4");
    let shift = "--num_head_channels -1 --use_new_attention_order False --schedule_sampler uniform";
    train(&place, &conditional, "model", &[SMALL, SHORT, shift, "--attention_resolutions 32,16,8"]);
    let small = "--image_size 32 --classifier_width 64 --classifier_depth 1 --batch_size 2 --iterations 1";
    train(&place, CLASSIFIER_TRAINING, "classifier", &[small, "--save_interval 1"]);
    let paths = [("/path/to/model.pt", "model.pth"), ("path/to/classifier.pt", "classifier.pth")];
    for (line, steps) in CLASSIFIER_SAMPLING.iter().zip(["ddim2", "2"]) {
        let cut = "--classifier_width 64 --classifier_depth 1 --num_samples 3 --timestep_respacing";
        run(&place, &words(line, &paths, &[SMALL, cut, steps]));
        assert_eq!(shape(&place, "samples_3x32x32x3.npz"), [3, 32, 32, 3]);
        std::fs::rename(place.path("samples_3x32x32x3.npz"), place.path("base.npz")).unwrap();
    }

    let sizes = "--num_channels 32 --num_res_blocks 1 --large_size 64 --small_size 32 --batch_size 2";
    let upsampler = "super_res_train.py --data_dir PATH_TO_DATASET --class_cond True --learn_sigma True \
                     --attention_resolutions 32,16,8 --resblock_updown True --use_fp16 True";
    train(&place, upsampler, "upsampler", &[sizes, SHORT, "--allow_upscale"]);
    let paths = [("models/64_256_upsampler.pt", "upsampler.pth"), ("64_samples.npz", "base.npz")];
    run(&place, &words(ENLARGING, &paths, &[sizes, "--num_samples 3 --timestep_respacing 2"]));
    assert_eq!(shape(&place, "samples_3x64x64x3.npz"), [3, 64, 64, 3]);

    let line = "image_nll.py --model_path model.pth --data_dir images --class_cond True --learn_sigma True \
                --resblock_updown True --num_heads 4 --attention_resolutions 32,16,8 --num_samples 2 \
                --timestep_respacing 3";
    run(&place, &words(line, &[], &[SMALL]));
    let written = names(&place.path(""));
    for terms in ["vb_terms.npz", "mse_terms.npz", "xstart_mse_terms.npz"] {
        assert!(written.iter().any(|name| name == terms), "{written:?}");
    }
}

/// PyTorch's files do not say the size of the images: the preset does.
#[test]
fn a_preset_goes_on_from_the_references_files() {
    let place = Place::new();
    let digits = ["train", "--preset", "digits", "--grid-images", "0", "--batch-size", "4"];
    place.run(&[&digits[..], &["--steps", "1", "--out", "run"]].concat()).exits(0);
    place.run(&["convert", "run", "files"]).exits(0);
    for begin in ["--resume_checkpoint", "--init-from"] {
        let args = [&digits[..], &["--steps", "2", "--out", &begin[2..], begin, "files/model000001.pt"]].concat();
        place.run(&args).exits(0);
    }
    // An average of another rate lies beside.
    let convert = ["convert", "files/model000001.pt", "back", "--config", "run/config.toml", "--ema-rate"];
    let said = place.run(&[&convert[..], &["0.9"]].concat()).exits(0).err();
    assert!(said.contains("ema_0.9_000001.pt is not there") && said.contains("--ema-rate 0.995 takes"), "{said}");
}

#[test]
fn openais_log_formats_are_written() {
    let place = Place::new();
    let tiny = [&["train"], super::support::TINY, &["--steps", "2"]].concat();
    let silent = place.run_with(&[("OPENAI_LOG_FORMAT", "json,tensorboard")], &tiny).exits(0);
    assert_eq!(silent.err(), "");
    let logs = |place: &Place| -> Vec<String> {
        let is_log = |name: &String| [".json", ".jsonl", ".csv", ".txt", "tb"].iter().any(|end| name.ends_with(end));
        names(&place.path("run")).into_iter().filter(|name| is_log(name) && name != "calls.jsonl").collect()
    };
    assert_eq!(logs(&place), ["progress.json", "tb"]);
    let lines = place.read("run/progress.json");
    let steps: Vec<Value> =
        lines.lines().map(|line| serde_json::from_str::<Value>(line).unwrap()["step"].clone()).collect();
    assert_eq!(steps, [1, 2]);
    let events = names(&place.path("run/tb"));
    assert!(events.len() == 1 && events[0].starts_with("events.out.tfevents."), "{events:?}");
    let bytes = std::fs::read(place.path("run/tb").join(&events[0])).unwrap();
    let found = |text: &[u8]| bytes.windows(text.len()).filter(|w| *w == text).count();
    assert_eq!((found(b"brain.Event:2"), found(b"grad_norm")), (1, 2));

    let other = [&["train"], super::support::TINY, &["--steps", "2", "--out", "run2"]].concat();
    let ran = place.run_with(&[("OPENAI_LOG_FORMAT", "stdout,csv")], &other).exits(0);
    assert!(ran.err().starts_with("step ") && place.path("run2/progress.csv").exists());
    place.run_with(&[("OPENAI_LOG_FORMAT", "csv,xml")], &other).complains(2, &["OPENAI_LOG_FORMAT", "\"xml\""]);
}
