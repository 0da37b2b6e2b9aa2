//! `ddpm-ip evaluate` and `ddpm-ip statistics`: how near samples are to real images.

use crate::args::{self, LABELS, choice_arg, number};
use crate::output::print;
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgAction, ArgMatches, Command, value_parser};
use ddpm_ip::Outcome;
use ddpm_ip::config::ConfigError;
use ddpm_ip::data::{Fit, Labels, Shape};
use ddpm_ip::evaluate::{
    self, Choice, DistanceParts, FID_INCEPTION, Job, Metric, Report, Resize, Settings, SideReport,
};
use fidelity::Subsets;
use std::path::PathBuf;

const FITS: [(&str, Fit); 2] = [("crop", Fit::Crop), ("pad", Fit::Pad)];
const METRICS: [(&str, Option<Metric>); 4] = [
    ("fid", None),
    (Metric::InceptionScore.flag(), Some(Metric::InceptionScore)),
    (Metric::PrecisionRecall.flag(), Some(Metric::PrecisionRecall)),
    (Metric::KernelDistance.flag(), Some(Metric::KernelDistance)),
];
const RESIZES: [(&str, Resize); 2] = [("tf1", Resize::TensorFlow1), ("clean", Resize::Clean)];

/// Flags that say how a metric is computed.
const OF_METRICS: [(&str, Metric); 4] = [
    ("split", Metric::InceptionScore),
    ("k", Metric::PrecisionRecall),
    ("kid-subsets", Metric::KernelDistance),
    ("kid-subset-size", Metric::KernelDistance),
];

/// The most of what takes memory by itself.
const MOST: u64 = 4096;

/// What both commands can be told.
fn settings_args() -> Vec<Arg> {
    let own = vec![
        Arg::new("features").long("features").value_name("NETWORK").help(
            "feature network: inception, inception:WEIGHTS.pth, grey (embedded) or a file.onnx [default: grey for grey \
             images, else inception]",
        ),
        choice_arg(
            "resize",
            RESIZES,
            "how images are resized to Inception's 299x299: as in TensorFlow 1 (FIDs of guided-diffusion, ADM, DDPM-IP) or \
             as in clean-fid [default: tf1]",
        ),
        number("feature-size", 1..=MOST, "side of the input images of an .onnx, in pixels, if the file leaves it open"),
        Arg::new("feature-output")
            .long("feature-output")
            .value_name("NAME")
            .help("output of an .onnx to use [default: the first one that has features]"),
        three(
            "feature-mean",
            "mean to subtract from each channel (values 0 to 1) for an .onnx [default: ImageNet's 0.485,0.456,0.406]",
        ),
        three(
            "feature-std",
            "standard deviation to divide each channel by, for an .onnx [default: ImageNet's 0.229,0.224,0.225]",
        ),
        number(
            "batch-size",
            1..=MOST,
            "images per batch of the feature network; does not change the results [default: 32]",
        ),
        number("image-size", 1..=MOST, "first resize all images to squares of this side, in pixels"),
        choice_arg("fit", FITS, "how images become squares: crop to the middle, or pad with black [default: crop]"),
        args::switch("allow-upscale", "enlarge images smaller than --image-size"),
        args::switch("exif-rotate", "rotate images as their EXIF data says; the reference ignores it"),
        args::path(
            "cache",
            "DIR",
            "folder for cached features and downloaded weights [default: DDPM_IP_CACHE, or ~/.cache/ddpm-ip]",
        ),
        args::switch("no-cache", "compute features again, and do not cache them"),
        args::switch("quiet", "show no progress"),
        args::switch("json", "print the report as JSON"),
    ];
    own.into_iter().chain(args::device_args()).collect()
}

/// A flag with a number for each of three channels.
fn three(name: &'static str, help: &'static str) -> Arg {
    let parse = |text: &str| -> Result<[f32; 3], String> {
        let numbers: Result<Vec<f32>, _> = text.split(',').map(|n| n.trim().parse()).collect();
        match numbers.map_err(|e| e.to_string())?[..] {
            [all] => Ok([all; 3]),
            [r, g, b] => Ok([r, g, b]),
            _ => Err("write one number, or three with commas between them".into()),
        }
    };
    Arg::new(name).long(name).value_name("R,G,B").allow_hyphen_values(true).value_parser(parse).help(help)
}

/// The network asked for.
fn features(matches: &ArgMatches) -> anyhow::Result<Option<Choice>> {
    let text = matches.get_one::<String>("features");
    let mut choice: Option<Choice> = text.map(|text| text.parse()).transpose()?;
    let given =
        ["feature-size", "feature-output", "feature-mean", "feature-std"].into_iter().find(|f| matches.contains_id(f));
    if let Some(Choice::Onnx(onnx)) = &mut choice {
        onnx.size = matches.get_one::<usize>("feature-size").copied();
        onnx.output = matches.get_one::<String>("feature-output").cloned();
        onnx.mean = matches.get_one("feature-mean").copied().unwrap_or(onnx.mean);
        onnx.std = matches.get_one("feature-std").copied().unwrap_or(onnx.std);
    } else if let Some(flag) = given {
        return Err(ConfigError(format!(
            "--{flag} is only for a network of your own: name one with --features FILE.onnx"
        ))
        .into());
    }
    Ok(choice)
}

fn images(name: &'static str, help: &'static str) -> Arg {
    Arg::new(name.to_lowercase()).value_name(name).required(true).help(help)
}

pub(super) fn evaluate_command() -> Command {
    let defaults = Subsets::default();
    Command::new("evaluate")
        .about("Compare samples with real images: FID, sFID, Inception Score, precision, recall, KID")
        .long_about(
            "Compare samples with real images: FID, sFID, Inception Score, precision, recall and KID, as the reference's \
             evaluator computes them.\n\n\
             REFERENCE and SAMPLES are each an .npz with images (`arr_0`), a folder of image files, a folder or file of \
             the MNIST family, `digits` (embedded), a run directory (its newest samples_*.npz), or an .npz with statistics \
             (`mu`, `sigma`, `mu_s`, `sigma_s`). The statistics of pytorch-fid and clean-fid (`mu`, `sigma`) give FID only.\n\n\
             Two FIDs can be compared only if the images were resized in the same way. Use the default for published FIDs of \
             guided-diffusion, ADM and DDPM-IP, and --resize clean for those of clean-fid. pytorch-fid resizes in a third way \
             (bilinear, inside PyTorch's Inception): do not compare with its numbers.\n\n\
             Each Fréchet distance is also split into the part from the means of the features and the part from their \
             covariances. Two lines describe the images themselves, with values scaled to -1 to 1: brightness is the mean over \
             all pixels and channels, with its standard error over images; pixel variance is the variance over images, \
             averaged over pixels and channels.\n\n\
             Features are cached by the content of the images. If a command was interrupted, repeat it to resume. The report \
             on a run's samples is added to the run's evaluations.jsonl.",
        )
        .arg(images("REFERENCE", "real images, or their statistics"))
        .arg(images("SAMPLES", "generated images, or a run directory"))
        .arg(
            Arg::new("metrics")
                .long("metrics")
                .value_name("LIST")
                .value_delimiter(',')
                .action(ArgAction::Append)
                .value_parser(args::choice(METRICS))
                .help("metrics to compute beside fid and sfid, which always are: is, pr (precision and recall), kid [default: all]"),
        )
        .arg(number("num-images", 2..=u64::MAX, "use only the first N samples"))
        .arg(number("split", 1..=u64::MAX, "samples per split of the Inception Score [default: 5000]"))
        .arg(number("k", 1..=1000, "number of nearest neighbours for precision and recall [default: 3]"))
        .arg(number("kid-subsets", 1..=100_000, "number of random subsets for KID [default: 100]"))
        .arg(number("kid-subset-size", 2..=100_000, "images per subset for KID, from each side [default: 1000]"))
        .arg(
            Arg::new("seed")
                .long("seed")
                .value_name("N")
                .value_parser(value_parser!(u64))
                .help(format!("seed of the random subsets of KID and --extrapolate [default: {}]", defaults.seed)),
        )
        .arg(args::switch("extrapolate", "also estimate FID for infinitely many samples"))
        .arg(args::switch("per-class", "also compare each class separately"))
        .arg(choice_arg("labels", LABELS, "where a folder's class labels come from: file name up to its first `_`, or folder"))
        .arg(args::path("neighbours", "FILE.png", "write a picture of samples beside their nearest reference images"))
        .args(settings_args())
        .args_override_self(true)
}

pub(super) fn statistics_command() -> Command {
    Command::new("statistics")
        .about("Write the statistics of images from which FID and sFID are computed")
        .long_about(
            "Write the statistics of images to an .npz with the names of the reference's downloads: `mu`, `sigma` and, for sFID, \
             `mu_s`, `sigma_s`. The file also holds the network's name (`features`) and the number of images (`images`). \
             `evaluate` takes the file in place of the images.",
        )
        .arg(images("IMAGES", "images, in any form that `evaluate` takes"))
        .arg(Arg::new("out").value_name("OUT.npz").required(true).value_parser(value_parser!(PathBuf)).help("the file to write"))
        .args(settings_args())
        .args_override_self(true)
}

/// How images are evaluated where no flags say it, with what is kept in the user's cache.
pub(super) fn usual_settings() -> Settings {
    let cache = args::cache_dir();
    Settings { weights: cache.clone().unwrap_or_default().join("weights"), cache, ..Settings::default() }
}

/// What both commands are told.
fn settings(matches: &ArgMatches) -> anyhow::Result<Settings> {
    let count = |name: &str| matches.get_one::<usize>(name).copied();
    let (fit, allow_upscale) = (matches.get_one::<Fit>("fit").copied(), matches.get_flag("allow-upscale"));
    let shape = count("image-size").map(|image_size| Shape {
        image_size,
        fit: fit.unwrap_or_default(),
        allow_upscale,
        channels: None,
    });
    if shape.is_none() && (fit.is_some() || allow_upscale) {
        let message = "--fit and --allow-upscale need --image-size: give the size to resize to";
        return Err(ConfigError(message.into()).into());
    }
    let folder = matches.get_one::<PathBuf>("cache").cloned().or_else(args::cache_dir);
    let default = Settings::default();
    Ok(Settings {
        features: features(matches)?,
        resize: matches.get_one("resize").copied().unwrap_or_default(),
        batch_size: count("batch-size").unwrap_or(default.batch_size),
        shape,
        exif_rotate: matches.get_flag("exif-rotate"),
        weights: folder.clone().unwrap_or_default().join("weights"),
        cache: folder.filter(|_| !matches.get_flag("no-cache")),
        ..default
    })
}

/// What `evaluate` is told.
fn all_settings(matches: &ArgMatches) -> anyhow::Result<Settings> {
    let refuse = |message: String| Err(ConfigError(message).into());
    let mut settings = settings(matches)?;
    if let Some(chosen) = matches.get_many::<Option<Metric>>("metrics") {
        settings.metrics = chosen.copied().flatten().collect();
        settings.all_metrics = true;
    }
    for (flag, metric) in OF_METRICS {
        if matches.contains_id(flag) && !settings.metrics.contains(&metric) {
            return refuse(format!(
                "--{flag} belongs to a metric that --metrics leaves out: remove the flag, or add the metric"
            ));
        }
    }
    settings.extrapolate = matches.get_flag("extrapolate");
    settings.per_class = matches.get_flag("per-class");
    if let Some(&seed) = matches.get_one::<u64>("seed") {
        if !settings.extrapolate && !settings.metrics.contains(&Metric::KernelDistance) {
            return refuse(
                "--seed is only for KID and --extrapolate, which are the only random ones: leave it out".into(),
            );
        }
        settings.subsets.seed = seed;
    }
    if let Some(&labels) = matches.get_one::<Labels>("labels") {
        if !settings.per_class {
            return refuse("--labels says which classes --per-class compares: add --per-class".into());
        }
        settings.labels = labels;
    }
    let count = |name: &str| matches.get_one::<usize>(name).copied();
    settings.num_images = count("num-images");
    settings.split = count("split").unwrap_or(settings.split);
    settings.k = count("k").unwrap_or(settings.k);
    settings.subsets.count = count("kid-subsets").unwrap_or(settings.subsets.count);
    settings.sized = [("split", Metric::InceptionScore), ("kid-subset-size", Metric::KernelDistance)]
        .into_iter()
        .filter_map(|(flag, metric)| matches.contains_id(flag).then_some(metric))
        .collect();
    settings.subsets.size = count("kid-subset-size").unwrap_or(settings.subsets.size);
    settings.neighbours = matches.get_one::<PathBuf>("neighbours").cloned();
    Ok(settings)
}

/// What `evaluate` is to compare.
pub(super) fn job(matches: &ArgMatches) -> anyhow::Result<Job> {
    let text = |name: &str| matches.get_one::<String>(name).cloned().with_context(|| format!("{name} is missing"));
    Ok(Job { reference: text("reference")?.into(), samples: text("samples")?.into(), settings: all_settings(matches)? })
}

pub(super) fn evaluate(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let job = job(matches)?;
    let place = crate::ranks::place(args::device(matches)?);
    let mut sinks = Sinks::new(matches.get_flag("quiet") || !place.ranks.leads(), None);
    let result = evaluate::evaluate(&job, place, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, report) = result?;
    print(&match report {
        None => stopped(job.settings.cache.is_some()).into(),
        Some(report) if matches.get_flag("json") => serde_json::to_string(&report)?,
        Some(report) => table(&report),
    })?;
    Ok(outcome)
}

fn stopped(kept: bool) -> &'static str {
    if kept { "stopped; what is finished is kept: repeat the command to resume" } else { "stopped; nothing was kept" }
}

pub(super) fn statistics(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let settings = settings(matches)?;
    let images = matches.get_one::<String>("images").context("IMAGES is missing")?;
    let out = matches.get_one::<PathBuf>("out").context("OUT.npz is missing")?;
    if out.extension().is_none_or(|e| e != "npz") {
        return Err(ConfigError(format!("{} is not the name of an npz: end it in .npz", out.display())).into());
    }
    let place = crate::ranks::place(args::device(matches)?);
    let mut sinks = Sinks::new(matches.get_flag("quiet") || !place.ranks.leads(), None);
    let result =
        evaluate::statistics(images, out, &settings, place, &*crate::interrupt::flag()?, &mut |e| sinks.receive(&e));
    sinks.finish();
    let (outcome, statistics) = result?;
    print(&match statistics {
        None => stopped(settings.cache.is_some()).into(),
        Some(s) if matches.get_flag("json") => serde_json::json!({
            "out": out.display().to_string(), "features": s.network, "images": s.images,
            "columns": s.features.width(), "spatial_columns": s.spatial.as_ref().map(fidelity::Gaussian::width),
        })
        .to_string(),
        Some(s) => format!(
            "wrote the statistics of {} images by {} to {}",
            s.images.unwrap_or_default(),
            s.network,
            out.display()
        ),
    })?;
    Ok(outcome)
}

/// The report for people.
fn table(report: &Report) -> String {
    let mut lines = Vec::new();
    let mut line = |name: &str, value: String| lines.push(format!("{name:18}{value}"));
    for (name, side) in [("reference", &report.reference), ("samples", &report.samples)] {
        let images = side.images.map_or("of unknown number".into(), |n| format!("{n} images"));
        line(name, format!("{}, {images}", side.source));
    }
    line("features", format!("{}, images resized {}", report.features, report.resize));
    line("", String::new());
    let parts = |distance: f64, parts: DistanceParts| {
        let [means, covariances] = [parts.from_means, parts.from_covariances].map(number_text);
        format!("{}  (from means {means}, from covariances {covariances})", number_text(distance))
    };
    let pair = |[value, error]: [f64; 2]| format!("{} ± {}", number_text(value), number_text(error));
    // What other networks than Inception give is not called by its names.
    let inception = report.features == FID_INCEPTION || report.features.starts_with("inception-");
    let named = |short: &'static str, long: &'static str| if inception { short } else { long };
    let rows = [
        (named("FID", "Fréchet distance"), Some(parts(report.fid, report.fid_parts))),
        (named("FID∞", "extrapolated"), report.fid_infinity.map(pair)),
        ("sFID", report.sfid.zip(report.sfid_parts).map(|(sfid, of)| parts(sfid, of))),
        (named("Inception Score", "class score"), report.inception_score.map(pair)),
        ("precision", report.precision.map(|v| format!("{v:.4}"))),
        ("recall", report.recall.map(|v| format!("{v:.4}"))),
        (named("KID", "kernel distance"), report.kid.map(pair)),
        (
            "brightness",
            of_sides(report, &|side| side.brightness.map(|[mean, error]| format!("{mean:.4} ± {error:.4}"))),
        ),
        ("pixel variance", of_sides(report, &|side| side.pixel_variance.map(|variance| format!("{variance:.4}")))),
    ];
    for (name, value) in rows {
        if let Some(value) = value {
            line(name, value);
        }
    }
    for class in &report.classes {
        let [of_reference, of_samples] = class.images;
        let value = class.frechet_distance.map_or("too few images".into(), number_text);
        line(&format!("class {}", class.class), format!("{value}  ({of_reference} and {of_samples} images)"));
    }
    if let Some(neighbours) = &report.neighbours {
        line("neighbours", neighbours.sheet.display().to_string());
    }
    if let Some(remark) = &report.remark {
        line("", String::new());
        line("note", remark.clone());
    }
    lines.iter().map(|line| line.trim_end()).collect::<Vec<_>>().join("\n")
}

/// What the images of one side or both have, their values scaled to -1 to 1.
fn of_sides(report: &Report, value: &dyn Fn(&SideReport) -> Option<String>) -> Option<String> {
    let sides = [("reference", &report.reference), ("samples", &report.samples)];
    let found: Vec<String> = sides.iter().filter_map(|(name, side)| Some(format!("{name} {}", value(side)?))).collect();
    (!found.is_empty()).then(|| format!("{}  (of values from -1 to 1)", found.join(", ")))
}

/// Four decimals, or four digits of what is smaller.
fn number_text(value: f64) -> String {
    if value == 0.0 || value.abs() >= 0.01 { format!("{value:.4}") } else { format!("{value:.3e}") }
}
