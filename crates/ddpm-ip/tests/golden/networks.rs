//! One forward and one backward pass of each network.

use super::support::{assert_near, assert_near_or_below, cases, open, tensor, values, weighted};
use burn::tensor::{Device, Tensor};

#[test]
fn golden_networks() {
    let device = Device::flex();
    for case in cases("networks") {
        let salt = case["salt"].as_str().unwrap();
        let Some((network, parameters)) = weighted(salt, &device) else { continue };
        let mut file = open(&case, "file");
        let t = file.floats("t").unwrap().values;
        let y: Option<Vec<u32>> =
            file.has("y").then(|| file.integers("y").unwrap().values.into_iter().map(|y| y as u32).collect());

        let x: Tensor<4> = tensor(file.floats("x").unwrap(), &device);
        let out = network.forward(&parameters, x.clone(), &t, y.as_deref(), None);
        let expected = file.floats("out").unwrap().values;
        assert_near(&format!("{salt}: out"), &values(out), &expected, 1e-5);

        let x = Tensor::from_inner(x).require_grad();
        let tracked = parameters.tracked();
        let out = network.forward(&tracked, x.clone(), &t, y.as_deref(), None);
        assert_near(&format!("{salt}: out with a graph"), &values(out.clone().inner()), &expected, 1e-5);
        let weight: Tensor<4> = tensor(file.floats("weight_of_sum").unwrap(), &device);
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
