//! What calls in pickles mean: the closed list of known functions, and what each would make.

use super::Fault;
use super::machine::Machine;
use super::tensor::{Dtype, Storage, Tensor};
use super::value::{ArrayNode, Id, Node};
use std::io::BufRead;
use std::sync::Arc;

/// An array of more dimensions is taken for damage.
const MOST_DIMENSIONS: usize = 8;

/// Bytes of a storage's name, which is a number.
const LONGEST_KEY: usize = 60;

impl<R: BufRead> Machine<'_, R> {
    /// What calling `class` would make; an opaque object where that is not known.
    pub(super) fn call(&mut self, class: Id, arguments: Id) -> Result<Id, Fault> {
        let known = self.known(class, arguments)?;
        Ok(known.unwrap_or_else(|| self.object(class, arguments)))
    }

    fn known(&mut self, class: Id, arguments: Id) -> Result<Option<Id>, Fault> {
        let (Node::Global(name), Node::Tuple(list)) = (self.heap.get(class), self.heap.get(arguments)) else {
            return Ok(None);
        };
        let node = match (name.as_str(), list.as_slice()) {
            (
                "torch._utils._rebuild_tensor" | "torch._utils._rebuild_tensor_v2",
                &[storage, offset, shape, strides, ref more @ ..],
            ) => {
                if more.get(2).is_some_and(|id| matches!(self.heap.get(*id), Node::Dict(marks) if !marks.is_empty())) {
                    return Err(
                        "a tensor is a negated or conjugated view: save it after .resolve_neg().resolve_conj()".into(),
                    );
                }
                self.tensor(storage, offset, shape, strides, None)?
            }
            ("torch._utils._rebuild_tensor_v3", &[storage, offset, shape, strides, _, _, dtype, ..]) => {
                self.tensor(storage, offset, shape, strides, Some(dtype))?
            }
            // A tensor with attributes, or of a class derived from it.
            (
                "torch._tensor._rebuild_from_type_v2" | "torch._tensor._rebuild_from_type",
                &[function, _, arguments, _],
            ) if self.is_global(function, |name| name.starts_with("torch._utils.")) => {
                return self.known(function, arguments);
            }
            (
                "torch._utils._rebuild_parameter" | "torch._utils._rebuild_parameter_with_state" | "torch.Size",
                &[data, ..],
            )
            | (
                "builtins.list" | "builtins.tuple" | "builtins.set" | "builtins.frozenset" | "builtins.bytearray"
                | "builtins.dict",
                &[data],
            ) => return Ok(Some(data)),
            ("collections.OrderedDict", &[pairs]) => self.ordered(pairs)?,
            ("collections.OrderedDict" | "builtins.dict", []) | ("collections.defaultdict", _) => {
                Some(Node::Dict(Vec::new()))
            }
            ("builtins.bytes", []) => Some(Node::Bytes(Vec::new())),
            ("_codecs.encode" | "builtins.bytearray", &[text, encoding]) => self.encoded(text, encoding)?,
            ("numpy.core.multiarray.scalar" | "numpy._core.multiarray.scalar", &[dtype, bytes]) => {
                self.scalar_of(dtype, bytes)
            }
            ("numpy._core.numeric._frombuffer" | "numpy.core.numeric._frombuffer", &[bytes, dtype, shape, order]) => {
                let fortran = matches!(self.heap.get(order), Node::Text(order) if order == "F");
                self.array(shape, dtype, fortran, bytes)
            }
            _ => None,
        };
        Ok(node.map(|node| self.heap.add(node)))
    }

    /// Gives an object its state.
    pub(super) fn build(&mut self, target: Id, state: Id) {
        // Dictionaries and tensors with attributes stay what they are.
        let Node::Object(object) = self.heap.get(target) else { return };
        let class = object.class;
        let rebuilds = |name: &str| name.starts_with("numpy.") && name.ends_with("core.multiarray._reconstruct");
        if self.is_global(class, rebuilds)
            && let Node::Tuple(list) = self.heap.get(state)
            && let &[.., shape, dtype, fortran, bytes] = list.as_slice()
        {
            let fortran = matches!(self.heap.get(fortran), Node::Bool(true) | Node::Int(1));
            if let Some(array) = self.array(shape, dtype, fortran, bytes) {
                *self.heap.get_mut(target) = array;
                return;
            }
        }
        if let Node::Object(object) = self.heap.get_mut(target) {
            object.state = Some(state);
        }
    }

    /// What PyTorch keeps outside of its pickle: storages, and modules' classes with their source.
    pub(super) fn persistent(&mut self, id: Id) -> Result<Id, Fault> {
        let wrong = || "is damaged: it refers to something that is not a storage".to_string();
        let Node::Tuple(list) = self.heap.get(id) else { return Err(wrong()) };
        let text = |id: Id| self.heap.value(id).name();
        match list.as_slice() {
            [kind, class, ..] if text(*kind).as_deref() == Some("module") => Ok(*class),
            // A type that is not read, such as quantised or complex numbers, stays the tuple that names it.
            [kind, class, key, _location, elements, rest @ ..] if text(*kind).as_deref() == Some("storage") => {
                let Node::Global(class) = self.heap.get(*class) else { return Err(wrong()) };
                let Some(dtype) = class.rsplit('.').next().and_then(Dtype::of_storage) else { return Ok(id) };
                let key = text(*key).ok_or_else(wrong)?;
                let elements = self.unsigned(*elements).ok_or_else(wrong)?;
                // A view of the storage that the key names: its own key, where it begins and its length.
                let offset = match rest.first().map(|&view| self.heap.get(view)) {
                    Some(Node::Tuple(view)) => view.get(1).and_then(|&start| self.unsigned(start)).ok_or_else(wrong)?,
                    _ => 0,
                };
                if key.len() > LONGEST_KEY {
                    return Err(wrong());
                }
                Ok(self.heap.add(Node::Storage(Arc::new(Storage { key, dtype, elements, offset }))))
            }
            _ => Err(wrong()),
        }
    }

    fn tensor(
        &self,
        storage: Id,
        offset: Id,
        shape: Id,
        strides: Id,
        dtype: Option<Id>,
    ) -> Result<Option<Node>, Fault> {
        let wrong = || "is damaged: it has a tensor without a shape".to_string();
        let Node::Storage(storage) = self.heap.get(storage) else { return Ok(None) };
        let dtype = match dtype.map(|id| self.heap.get(id)) {
            None => Some(storage.dtype),
            Some(Node::Global(name)) => Dtype::of_name(name),
            Some(_) => None,
        };
        // A type that is not read, such as an 8-bit float, leaves an object.
        let Some(dtype) = dtype else { return Ok(None) };
        let offset = self.unsigned(offset).ok_or_else(wrong)?;
        let shape = self.lengths(shape).ok_or_else(wrong)?;
        let strides = self.lengths(strides).ok_or_else(wrong)?;
        let tensor = Tensor::new(Arc::clone(storage), dtype, offset, shape, strides)?;
        Ok(Some(Node::Tensor(Box::new(tensor))))
    }

    /// A NumPy array, if its type is one of numbers and there are as many bytes as it needs.
    fn array(&self, shape: Id, dtype: Id, fortran: bool, bytes: Id) -> Option<Node> {
        let dtype = self.numpy_type(dtype)?;
        let shape = self.lengths(shape)?;
        let needed = shape.iter().try_fold(dtype.size(), |n, &length| n.checked_mul(length));
        let Node::Bytes(held) = self.heap.get(bytes) else { return None };
        (needed == Some(held.len())).then(|| Node::Array(Box::new(ArrayNode { dtype, shape, fortran, bytes })))
    }

    fn scalar_of(&self, dtype: Id, bytes: Id) -> Option<Node> {
        let dtype = self.numpy_type(dtype)?;
        let Node::Bytes(bytes) = self.heap.get(bytes) else { return None };
        let mut number = Vec::new();
        dtype.append(bytes.get(..dtype.size())?, &mut number, |v| v);
        let number = number.pop()?;
        Some(match dtype {
            Dtype::F64 | Dtype::F32 | Dtype::F16 | Dtype::Bf16 => Node::Float(number),
            Dtype::Bool => Node::Bool(number != 0.0),
            _ => Node::Int(number as i128),
        })
    }

    /// The type that a NumPy dtype object stands for, unless its bytes are swapped.
    fn numpy_type(&self, dtype: Id) -> Option<Dtype> {
        let dtype = self.heap.value(dtype);
        if dtype.class()? != "numpy.dtype" {
            return None;
        }
        let order = dtype.state().and_then(|state| state.items()?.nth(1)?.name());
        if order.as_deref() == Some(">") {
            return None;
        }
        Dtype::of_name(&dtype.arguments()?.items()?.next()?.name()?)
    }

    /// Text as the bytes of which Python 3 made it for protocol 2.
    fn encoded(&mut self, text: Id, encoding: Id) -> Result<Option<Node>, Fault> {
        let latin = matches!(self.heap.value(encoding).name().as_deref(), Some("latin1" | "latin-1"));
        let Node::Text(text) = self.heap.get(text) else { return Ok(None) };
        self.budget.spend(text.len())?;
        let bytes: Option<Vec<u8>> = text.chars().map(|c| u8::try_from(c).ok()).collect();
        Ok(bytes.filter(|_| latin).map(Node::Bytes))
    }

    /// A dictionary from a list of pairs, as Python 2 wrote it.
    fn ordered(&mut self, pairs: Id) -> Result<Option<Node>, Fault> {
        let (Node::List(list) | Node::Tuple(list)) = self.heap.get(pairs) else { return Ok(None) };
        let pair = |id: &Id| match self.heap.get(*id) {
            Node::List(pair) | Node::Tuple(pair) => <[Id; 2]>::try_from(pair.as_slice()).ok().map(|[k, v]| (k, v)),
            _ => None,
        };
        self.budget.spend(list.len())?;
        let entries: Option<Vec<_>> = list.iter().map(pair).collect();
        Ok(entries.map(Node::Dict))
    }

    fn is_global(&self, id: Id, is_it: impl Fn(&str) -> bool) -> bool {
        matches!(self.heap.get(id), Node::Global(name) if is_it(name))
    }

    fn unsigned(&self, id: Id) -> Option<u64> {
        if let Node::Int(value) = self.heap.get(id) { u64::try_from(*value).ok() } else { None }
    }

    /// A tuple of lengths or strides.
    fn lengths(&self, id: Id) -> Option<Vec<usize>> {
        let (Node::Tuple(list) | Node::List(list)) = self.heap.get(id) else { return None };
        if list.len() > MOST_DIMENSIONS {
            return None;
        }
        list.iter().map(|&id| usize::try_from(self.unsigned(id)?).ok()).collect()
    }
}
