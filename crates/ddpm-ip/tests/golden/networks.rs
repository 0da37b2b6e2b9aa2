//! One forward and one backward pass of each network.

use super::support::{assert_near, assert_near_or_below, cases, classifier, network, open, weights};
use ddpm_ip::low_res;
use ddpm_ip::net::network::Network;
use ddpm_ip::net::{Device, Engine, Feed, Parameters};
use ddpm_ip::npz::Npz;

/// Compares with what the file of a network holds.
fn check<N: Network>(salt: &str, network: N, file: &mut Npz) {
    let parameters = Parameters::from_values(network.layout(), &weights(network.specs(), salt));
    let x = file.floats("x").unwrap();
    let size = [x.shape[2], x.shape[3]];
    let times = file.floats("t").unwrap().values;
    let labels: Option<Vec<u32>> = (file.has("y") && network.config().num_classes.is_some())
        .then(|| file.integers("y").unwrap().values.into_iter().map(|y| y as u32).collect());
    let low_res = file.has("low_res").then(|| {
        let small = file.floats("low_res").unwrap();
        low_res::enlarge(&small.values, small.shape[3], size[1])
    });
    let engine = Engine::new(network, Device::Cpu);
    let feed = Feed { labels: labels.as_deref(), low_res: low_res.as_deref(), ..Feed::new(&x.values, size, &times) };
    let expected = file.floats("out").unwrap().values;
    assert_near(&format!("{salt}: out"), &engine.forward(&parameters, feed), &expected, 1e-5);

    let weight = file.floats("weight_of_sum").unwrap().values;
    let seed = |_, output: &[f32], grad: &mut [f32]| {
        assert_near(&format!("{salt}: out before a backward pass"), output, &expected, 1e-5);
        grad.copy_from_slice(&weight);
    };
    let of_images = engine.image_gradient(&parameters, feed, seed);
    assert_near(&format!("{salt}: grad_x"), &of_images, &file.floats("grad_x").unwrap().values, 1e-4);
    for alone in [true, false] {
        let (mut gradient, _) = engine.gradient(&parameters, feed, alone, seed);
        let gradient = Parameters::new(parameters.layout().clone(), gradient.values().to_vec());
        let norms = file.doubles("grad_norms").unwrap().values;
        // A bias before a normalisation of single channels has no gradient but rounding noise, here and in the
        // reference: what is compared there is that it is noise.
        let noise = 1e-7 * norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        assert_eq!(norms.len(), gradient.layout().specs().len(), "{salt}: number of parameters");
        for ((spec, gradient), norm) in gradient.iter().zip(norms) {
            let actual = gradient.iter().map(|&v| f64::from(v).powi(2)).sum::<f64>().sqrt();
            let what = format!("{salt}: norm of the gradient of {}", spec.name);
            assert!((actual - norm).abs() <= 1e-4 * norm + noise, "{what}: {actual:e}, the reference has {norm:e}");
            let name = format!("grad/{}", spec.name);
            if file.has(&name) {
                let expected = file.floats(&name).unwrap().values;
                assert_near_or_below(&format!("{salt}: {name}"), gradient, &expected, 1e-4, noise);
            }
        }
    }
}

#[test]
fn golden_networks() {
    for case in cases("networks") {
        let salt = case["salt"].as_str().unwrap();
        let mut file = open(&case, "file");
        match network(salt) {
            Some(network) => check(salt, network, &mut file),
            None => check(salt, classifier(salt).unwrap(), &mut file),
        }
    }
}
