//! `ddpm-ip prepare`: published data sets into npz files and folders of PNGs.

use crate::args::{self, LABELS, choice, choice_arg};
use crate::output::print;
use crate::sink::Sinks;
use anyhow::Context;
use clap::{Arg, ArgMatches, Command, value_parser};
use ddpm_ip::prepare::{self, Fit, Job, Kind, Split};
use ddpm_ip::{Event, Outcome};
use std::path::PathBuf;

const SPLITS: [(&str, Split); 3] = [("train", Split::Train), ("test", Split::Test), ("val", Split::Test)];
const FITS: [(&str, Fit); 3] = [("crop", Fit::Crop), ("pad", Fit::Pad), ("squash", Fit::Squash)];

pub(super) fn command() -> Command {
    Command::new("prepare")
        .about("Prepare a published data set for training")
        .long_about(
            "Prepare a published data set for training: convert its archive, folder or database to an .npz (`arr_0` uint8 \
             NHWC, `arr_1` labels) or a folder of PNGs. SOURCE for each KIND:\n\n  \
             cifar10     cifar-10-binary.tar.gz, cifar-10-python.tar.gz, or the folder of either\n  \
             imagenet32  folder of train_data_batch_1 to 10 or val_data, pickles or .npz\n  \
             celeba64    img_align_celeba, folder or zip; needs --fit\n  \
             ffhq128     thumbnails128x128, folder or zip\n  \
             lsun        LMDB folder such as tower_train_lmdb\n  \
             emoji       NotoColorEmoji.ttf of Debian's fonts-noto-color-emoji, or another font with colour bitmaps\n  \
             images      folder, zip, tar or tar.gz of image files\n\n\
             Images are sorted by name; those of tar archives and databases keep their own order. If a command was \
             interrupted, repeat it to resume; if it was finished, it finds its npz done.",
        )
        .arg(
            Arg::new("kind")
                .value_name("KIND")
                .required(true)
                .value_parser(choice(Kind::ALL.map(|kind| (kind.name(), kind))))
                .help("kind of data set"),
        )
        .arg(
            Arg::new("source")
                .value_name("SOURCE")
                .required(true)
                .value_parser(value_parser!(PathBuf))
                .help("file or folder of the data set"),
        )
        .arg(args::path("out", "PATH", "the .npz to write, or a folder for PNGs").required(true))
        .arg(choice_arg("split", SPLITS, "part of cifar10 or imagenet32 [default: train]"))
        .arg(choice_arg(
            "fit",
            FITS,
            "how images become squares: crop to the middle, pad with black, or squash to a square",
        ))
        .arg(
            Arg::new("image-size")
                .long("image-size")
                .value_name("N")
                .value_parser(value_parser!(usize))
                .help("side in pixels [default: 64 for celeba64, 256 for lsun, 32 for emoji, the images' own for images]"),
        )
        .arg(
            Arg::new("channels")
                .long("channels")
                .value_name("N")
                .value_parser(value_parser!(usize))
                .help("channels for KIND images: 1 or 3 [default: those of the first image]"),
        )
        .arg(choice_arg(
            "labels",
            LABELS,
            "class labels for KIND images: file name up to its first `_`, or folder [default: none]",
        ))
        .arg(
            Arg::new("prefix")
                .long("prefix")
                .value_name("NAME")
                .help("how the names of lsun's PNGs start [default: the category]"),
        )
        .arg(args::switch("exif-rotate", "rotate images as their EXIF data says; the reference ignores it"))
        .arg(args::switch("allow-count", "accept another number of images than the data set should have"))
        .arg(args::switch("quiet", "show no progress"))
        .arg(args::switch("json", "print the report as JSON"))
        .args_override_self(true)
}

pub(super) fn run(matches: &ArgMatches) -> anyhow::Result<Outcome> {
    let path = |id: &str| matches.get_one::<PathBuf>(id).cloned().with_context(|| format!("{id} is missing"));
    let job = Job {
        kind: *matches.get_one::<Kind>("kind").context("KIND is missing")?,
        source: path("source")?,
        out: path("out")?,
        split: matches.get_one("split").copied(),
        fit: matches.get_one("fit").copied(),
        image_size: matches.get_one("image-size").copied(),
        channels: matches.get_one("channels").copied(),
        labels: matches.get_one("labels").copied(),
        prefix: matches.get_one("prefix").cloned(),
        exif_rotate: matches.get_flag("exif-rotate"),
        allow_count: matches.get_flag("allow-count"),
    };
    let ranks = crate::ranks::ranks();
    let mut sinks = Sinks::new(matches.get_flag("quiet") || !ranks.leads(), None);
    let mut images = 0;
    let outcome = prepare::run(&job, &ranks, &*crate::interrupt::flag()?, &mut |event| {
        if let Event::Prepared { done, .. } = event {
            images = done;
        }
        sinks.receive(&event);
    });
    sinks.finish();
    let outcome = outcome?;
    let finished = outcome == Outcome::Finished;
    if matches.get_flag("json") {
        let outcome = if finished { "finished" } else { "interrupted" };
        print(
            &serde_json::json!({ "outcome": outcome, "images": images, "out": job.out.display().to_string() })
                .to_string(),
        )?;
    } else if finished {
        print(&format!("{images} images are in {}", job.out.display()))?;
    } else {
        print("stopped; what is finished is kept: repeat the command to resume")?;
    }
    Ok(outcome)
}
