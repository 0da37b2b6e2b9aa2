//! The state of AdamW.

use super::value::Value;
use super::{Fault, Tensor, TorchFile};
use std::collections::HashMap;

/// Under what names a checkpoint may hold its optimizer.
const KEYS: [&str; 3] = ["optimizer", "optimizer_state_dict", "opt"];

/// The state of an AdamW or Adam optimizer: one entry per parameter, in the order of the optimizer's groups.
#[derive(Clone, Debug, PartialEq)]
pub struct Optimizer {
    /// Steps taken with each parameter.
    pub steps: Vec<u64>,
    /// Running means of the gradients, each of its parameter's shape.
    pub exp_avg: Vec<Tensor>,
    /// Running means of their squares.
    pub exp_avg_sq: Vec<Tensor>,
    /// Learning rate.
    pub lr: f64,
    /// Decay of the two means.
    pub betas: (f64, f64),
    /// What is added to the denominator.
    pub eps: f64,
    /// Weight decay.
    pub weight_decay: f64,
}

/// A number in the pickle, or the place of one among the tensors.
enum Scalar {
    Number(f64),
    Tensor(Tensor),
}

/// lr, beta1, beta2, eps and weight_decay of a group of parameters.
type Rates = [Scalar; 5];

/// The state of one parameter.
struct Entry {
    step: Scalar,
    exp_avg: Tensor,
    exp_avg_sq: Tensor,
}

/// Reads the state of a file's optimizer.
pub(super) fn read(file: &mut TorchFile) -> Result<Optimizer, Fault> {
    let (groups, entries) = describe(file.value())?;
    let mut rates: Option<[f64; 5]> = None;
    for group in groups {
        let mut of_group = [0.0; 5];
        for (rate, scalar) in of_group.iter_mut().zip(&group) {
            *rate = number(file, scalar)?;
        }
        if *rates.get_or_insert(of_group) != of_group {
            return Err("has an optimizer with different settings for different parameter groups, which is not \
                        supported"
                .into());
        }
    }
    let [lr, beta1, beta2, eps, weight_decay] = rates.ok_or("has an optimizer without parameters")?;
    let mut steps = Vec::with_capacity(entries.len());
    for entry in &entries {
        let step = number(file, &entry.step)?;
        if !(step >= 0.0 && step.fract() == 0.0) {
            return Err(format!("is damaged: its optimizer has made {step} steps"));
        }
        steps.push(step as u64);
    }
    let (exp_avg, exp_avg_sq) = entries.into_iter().map(|e| (e.exp_avg, e.exp_avg_sq)).unzip();
    Ok(Optimizer { steps, exp_avg, exp_avg_sq, lr, betas: (beta1, beta2), eps, weight_decay })
}

fn describe(root: Value) -> Result<(Vec<Rates>, Vec<Entry>), Fault> {
    let other = || "has the state of an optimizer other than AdamW or Adam".to_string();
    let state_dict = find(root).ok_or_else(|| format!("holds {}, but no optimizer's state", root.describe()))?;
    let state = state_dict.get("state").and_then(Value::entries).ok_or_else(other)?;
    let mut states: HashMap<i64, Value> = state.filter_map(|(index, entry)| Some((index.int()?, entry))).collect();
    if states.is_empty() {
        return Err("has an optimizer that has made no step yet: there is no state to resume from".into());
    }
    let (mut groups, mut entries) = (Vec::new(), Vec::new());
    for group in state_dict.get("param_groups").and_then(Value::items).ok_or_else(other)? {
        let parameters = group.get("params").and_then(Value::items).ok_or_else(other)?;
        if parameters.len() == 0 {
            continue;
        }
        groups.push(rates(group).ok_or_else(other)?);
        for index in parameters {
            let index = index.int().ok_or_else(other)?;
            let state = states.remove(&index);
            let state =
                state.ok_or_else(|| format!("has no optimizer state for parameter {index}, or names it twice"))?;
            entries.push(entry(state).ok_or_else(other)?);
        }
    }
    Ok((groups, entries))
}

fn find(root: Value) -> Option<Value> {
    let is_one = |value: &Value| value.get("param_groups").is_some();
    let nested = || KEYS.iter().find_map(|key| root.get(key).filter(is_one));
    let listed = || root.items().and_then(|mut items| items.find(is_one));
    Some(root).filter(is_one).or_else(nested).or_else(listed)
}

fn rates(group: Value) -> Option<Rates> {
    let mut betas = group.get("betas")?.items()?;
    let rates = [
        scalar(group.get("lr")?)?,
        scalar(betas.next()?)?,
        scalar(betas.next()?)?,
        scalar(group.get("eps")?)?,
        scalar(group.get("weight_decay")?)?,
    ];
    // The largest squares so far would be lost.
    let amsgrad = group.get("amsgrad").and_then(Value::bool) == Some(true);
    (!amsgrad).then_some(rates)
}

fn entry(state: Value) -> Option<Entry> {
    let exp_avg = state.get("exp_avg")?.tensor()?.clone();
    let exp_avg_sq = state.get("exp_avg_sq")?.tensor()?.clone();
    let alike = exp_avg.shape() == exp_avg_sq.shape();
    alike.then_some(Entry { step: scalar(state.get("step")?)?, exp_avg, exp_avg_sq })
}

fn scalar(value: Value) -> Option<Scalar> {
    match value.tensor() {
        Some(tensor) if tensor.count() == 1 => Some(Scalar::Tensor(tensor.clone())),
        Some(_) => None,
        None => value.float().map(Scalar::Number),
    }
}

fn number(file: &mut TorchFile, scalar: &Scalar) -> Result<f64, Fault> {
    match scalar {
        Scalar::Number(number) => Ok(*number),
        Scalar::Tensor(tensor) => {
            let numbers = file.read(tensor, |v| v)?;
            numbers.first().copied().ok_or_else(|| "is damaged: it has an empty number".into())
        }
    }
}

#[cfg(test)]
mod tests {
    use crate::torch::tests::{legacy, save, tensor};
    use crate::torch::{Optimizer, TorchFile};

    const GROUP: &str = "Vlr\nF0.5\nsVbetas\n(F0.9\nF0.99\ntsVeps\nF1e-8\nsVweight_decay\nF0.0\ns";

    /// An optimizer with state for parameters 4 and 1, in that order, and the groups given.
    fn read(groups: &str) -> Result<Optimizer, crate::Error> {
        let (wide, flat) = (tensor("2", "0", "1 2", "2 1"), tensor("2", "0", "2", "1"));
        let state = |index: &str, step: &str, moment: &str| {
            format!("I{index}\n}}Vstep\n{step}sVexp_avg\n{moment}sVexp_avg_sq\n{moment}ss")
        };
        let step = tensor("2", "1", "", "");
        let states = format!("}}{}{}", state("1", "I3\n", &wide), state("4", &step, &flat));
        let object = format!("}}Vopt\n}}Vstate\n{states}sVparam_groups\n]({groups}ess.");
        let numbers: Vec<u8> = [2.0f32, 3.0].into_iter().flat_map(f32::to_le_bytes).collect();
        let file = save(&legacy(object.as_bytes(), 2, &numbers));
        TorchFile::open(file.path()).unwrap().optimizer()
    }

    fn group(parameters: &str, more: &str) -> String {
        format!("}}{GROUP}Vparams\n]({parameters}es{more}")
    }

    #[test]
    fn entries_come_in_the_order_of_the_groups() {
        let optimizer = read(&group("I4\nI1\n", "")).unwrap();
        assert_eq!(optimizer.steps, [3, 3]);
        assert_eq!((optimizer.lr, optimizer.betas), (0.5, (0.9, 0.99)));
        let shapes: Vec<_> = optimizer.exp_avg.iter().map(|t| t.shape().to_vec()).collect();
        assert_eq!(shapes, [vec![2], vec![1, 2]]);
        assert_eq!(read(&(group("I1\n", "") + &group("I4\n", ""))).unwrap().steps, [3, 3]);
        // A learning rate may be a tensor.
        let tensor = format!("Vlr\n{}s", tensor("2", "0", "", ""));
        assert_eq!(read(&group("I1\n", &tensor)).unwrap().lr, 2.0);
    }

    #[test]
    fn other_optimizers_are_refused() {
        let error = |groups: &str| read(groups).unwrap_err().to_string();
        assert!(error(&group("I2\n", "")).contains("parameter 2"));
        assert!(error(&group("I1\nI1\n", "")).contains("twice"));
        assert!(error(&group("I1\n", "Vamsgrad\nI01\ns")).contains("other than AdamW"));
        assert!(error("}Vparams\n](I1\nes").contains("other than AdamW"));
        assert!(error("").contains("without parameters"));
        let other = group("I4\n", "Vlr\nF0.25\ns");
        assert!(error(&(group("I1\n", "") + &other)).contains("different settings"));
    }
}
