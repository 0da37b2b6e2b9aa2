//! One network call from a file to a file.

use super::support::{assert_says, cpu, tiny, trained, with};
use ddpm_ip::config::Config;
use ddpm_ip::net::network::{Network, Unet};
use ddpm_ip::net::{Engine, Feed};
use ddpm_ip::npz::{Npz, NpzWriter};
use ddpm_ip::predict::predict;
use std::path::Path;

fn input(path: &Path, shape: &[usize], t: &[i64], y: Option<&[i64]>) -> Vec<f32> {
    let values: Vec<f32> = (0..shape.iter().product()).map(|i: usize| (i as f32 * 0.37).sin()).collect();
    ddpm_ip::file::write_atomic(path, |w| {
        let mut npz = NpzWriter::new(w);
        npz.array::<f32>("x", shape, |push| push(&values))?;
        npz.array::<i64>("t", &[t.len()], |push| push(t))?;
        if let Some(y) = y {
            npz.array::<i64>("y", &[y.len()], |push| push(y))?;
        }
        npz.finish()
    })
    .unwrap();
    values
}

#[test]
fn the_output_is_the_networks() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("in.npz"), folder.path().join("out.npz"));
    let config = with(&[("class_cond", "true")]);
    let checkpoint = trained(&config, &folder.path().join("run")).join("model.safetensors");
    // The network is convolutional: the input may be larger than the images it was trained on.
    let shape = [2, 1, 16, 8];
    let x = input(&from, &shape, &[3, 900], Some(&[1, 9]));
    assert_eq!(predict(&checkpoint, &config, &from, &to, cpu()).unwrap(), shape);
    let out = Npz::open(&to).unwrap().floats("out").unwrap();

    let mut config = config;
    config.model.num_classes = 10;
    let network = Unet::new(config.model.network(config.diffusion.variance).unwrap());
    let parameters = ddpm_ip::checkpoint::load(&checkpoint, network.layout(), "").unwrap();
    let feed = Feed { labels: Some(&[1, 9]), ..Feed::new(&x, [16, 8], &[3.0, 900.0]) };
    assert_eq!(out.values, Engine::new(network, cpu()).forward(&parameters, feed));
    assert!(out.values.iter().any(|v| *v != 0.0));
}

#[test]
fn arrays_that_do_not_fit_are_named() {
    let folder = tempfile::tempdir().unwrap();
    let (from, to) = (folder.path().join("in.npz"), folder.path().join("out.npz"));
    let run = |config: &Config, name: &str| trained(config, &folder.path().join(name));
    let (plain, classes) = (tiny(), with(&[("class_cond", "true"), ("channel_mult", "1,1")]));
    let (of_plain, of_classes) = (run(&plain, "plain"), run(&classes, "classes"));
    let refused = |checkpoint: &Path, config: &Config, parts: &[&str]| {
        assert_says(predict(checkpoint, config, &from, &to, cpu()), parts);
        assert!(!to.exists());
    };
    assert_says(predict(&of_plain, &plain, &from, &to, cpu()), &["in.npz"]);
    input(&from, &[2, 3, 8, 8], &[1, 2], None);
    refused(&of_plain, &plain, &["`x`", "[2, 3, 8, 8]", "1 channels"]);
    input(&from, &[2, 8, 8], &[1, 2], None);
    refused(&of_plain, &plain, &["`x`", "[N, C, H, W]"]);
    input(&from, &[2, 1, 8, 8], &[1], None);
    refused(&of_plain, &plain, &["`t` has 1 values for 2"]);
    input(&from, &[2, 1, 8, 8], &[1, 2], Some(&[0, 0]));
    refused(&of_plain, &plain, &["`y`", "no classes"]);
    input(&from, &[2, 1, 8, 8], &[1, 2], None);
    refused(&of_classes, &classes, &["in.npz", "`y`"]);
    input(&from, &[2, 1, 8, 8], &[1, 2], Some(&[0, 10]));
    refused(&of_classes, &classes, &["`y`", "outside 0 … 9"]);
    input(&from, &[2, 1, 7, 8], &[1, 2], Some(&[0, 1]));
    refused(&of_classes, &classes, &["multiples of 2"]);
}
