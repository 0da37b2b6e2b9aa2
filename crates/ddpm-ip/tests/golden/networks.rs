//! One forward and one backward pass of each network.

use super::support::{assert_near, assert_near_or_below, cases, classifier, network, open, tensor, values, weights};
use burn::tensor::{Device, Tensor};
use ddpm_ip::model::{Classifier, Condition, Parameters, Spec, Unet, low_res};
use ddpm_ip::npz::Npz;

enum Network {
    Unet(Unet),
    Classifier(Classifier),
}

impl Network {
    fn of(salt: &str) -> Self {
        match network(salt) {
            Some(network) => Self::Unet(network),
            None => Self::Classifier(classifier(salt).unwrap()),
        }
    }

    fn specs(&self) -> &[Spec] {
        match self {
            Self::Unet(network) => network.specs(),
            Self::Classifier(network) => network.specs(),
        }
    }

    /// The output for `x` and all else that the case's file has, flat.
    fn run(&self, p: &Parameters, x: Tensor<4>, file: &mut Npz) -> Tensor<1> {
        let t = file.floats("t").unwrap().values;
        match self {
            Self::Classifier(network) => network.forward(p, x, &t, None).flatten(0, 1),
            Self::Unet(network) => {
                let y: Option<Vec<u32>> =
                    file.has("y").then(|| file.integers("y").unwrap().values.into_iter().map(|y| y as u32).collect());
                let low_res = file.has("low_res").then(|| {
                    let small = file.floats("low_res").unwrap();
                    let values = low_res::enlarge(&small.values, small.shape[3], x.dims()[3]);
                    Tensor::from_data(burn::tensor::TensorData::new(values, x.dims()), &x.device())
                });
                network.forward(p, x, &t, Condition { labels: y.as_deref(), low_res }, None).flatten(0, 3)
            }
        }
    }
}

#[test]
fn golden_networks() {
    let device = Device::flex();
    for case in cases("networks") {
        let salt = case["salt"].as_str().unwrap();
        let network = Network::of(salt);
        let parameters = Parameters::from_values(weights(network.specs(), salt), &device);
        let mut file = open(&case, "file");

        let x: Tensor<4> = tensor(file.floats("x").unwrap(), &device);
        let out = network.run(&parameters, x.clone(), &mut file);
        let expected = file.floats("out").unwrap().values;
        assert_near(&format!("{salt}: out"), &values(out), &expected, 1e-5);

        let x = Tensor::from_inner(x).require_grad();
        let tracked = parameters.tracked();
        let out = network.run(&tracked, x.clone(), &mut file);
        assert_near(&format!("{salt}: out with a graph"), &values(out.clone().inner()), &expected, 1e-5);
        let weight: Vec<f32> = file.floats("weight_of_sum").unwrap().values;
        let weight = Tensor::<1>::from_floats(weight.as_slice(), &device);
        let mut grads = (out * Tensor::from_inner(weight)).sum().backward();
        let grad_x = values(x.grad_remove(&mut grads).unwrap());
        assert_near(&format!("{salt}: grad_x"), &grad_x, &file.floats("grad_x").unwrap().values, 1e-4);
        let gradients = tracked.gradients(&mut grads).to_values();
        let norms = file.doubles("grad_norms").unwrap().values;
        // A bias before a normalisation of single channels has no gradient but rounding noise, here and in the
        // reference: what is compared there is that it is noise.
        let noise = 1e-7 * norms.iter().map(|n| n * n).sum::<f64>().sqrt();
        assert_eq!(norms.len(), gradients.len(), "{salt}: number of parameters");
        for ((spec, gradient), norm) in network.specs().iter().zip(&gradients).zip(norms) {
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
