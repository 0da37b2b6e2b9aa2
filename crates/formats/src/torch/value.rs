//! What a pickle holds, as plain data.
//!
//! All values of a pickle lie in one list and refer to each other by index. So values that share parts, or contain
//! themselves, cost nothing, and nothing has to be walked to free them.

use super::source::latin1;
use super::tensor::{Dtype, Storage, Tensor};
use crate::npy;
use std::borrow::Cow;
use std::sync::Arc;

/// How many keys a description names.
const DESCRIBED_KEYS: usize = 6;

/// A longer text is no name: a small file could otherwise have one repeated without end.
const LONGEST_NAME: usize = 500;

/// Index of a value in its pickle.
#[derive(Clone, Copy, Debug, PartialEq, Eq, Hash)]
pub(super) struct Id(u32);

#[derive(Debug)]
pub(super) enum Node {
    None,
    Bool(bool),
    Int(i128),
    /// A whole number of more than 128 bits, or what else is of no use here.
    Unread,
    Float(f64),
    Text(String),
    /// Bytes, and Python 2's strings.
    Bytes(Vec<u8>),
    /// A list or a set.
    List(Vec<Id>),
    Tuple(Vec<Id>),
    Dict(Vec<(Id, Id)>),
    /// A class or function, by its full name.
    Global(String),
    Storage(Arc<Storage>),
    Tensor(Box<Tensor>),
    Array(Box<ArrayNode>),
    Object(Box<ObjectNode>),
}

#[derive(Debug)]
pub(super) struct ArrayNode {
    pub(super) dtype: Dtype,
    pub(super) shape: Vec<usize>,
    pub(super) fortran: bool,
    /// A [`Node::Bytes`] of as many bytes as dtype and shape say.
    pub(super) bytes: Id,
}

/// The result of a call that was not made.
#[derive(Debug)]
pub(super) struct ObjectNode {
    pub(super) class: Id,
    pub(super) arguments: Id,
    pub(super) state: Option<Id>,
    pub(super) items: Vec<Id>,
    pub(super) entries: Vec<(Id, Id)>,
}

/// The values of a pickle.
#[derive(Debug, Default)]
pub(super) struct Heap(Vec<Node>);

impl Heap {
    /// Adds a value.
    pub(super) fn add(&mut self, node: Node) -> Id {
        self.0.push(node);
        Id((self.0.len() - 1) as u32)
    }

    pub(super) fn get(&self, id: Id) -> &Node {
        &self.0[id.0 as usize]
    }

    pub(super) fn get_mut(&mut self, id: Id) -> &mut Node {
        &mut self.0[id.0 as usize]
    }

    pub(super) fn value(&self, id: Id) -> Value<'_> {
        Value { heap: self, id }
    }

    /// All storages, in no order of meaning.
    pub(super) fn storages(&self) -> impl Iterator<Item = &Arc<Storage>> {
        self.0.iter().filter_map(|node| if let Node::Storage(storage) = node { Some(storage) } else { None })
    }
}

/// A value inside a pickle. Each accessor answers `None` for a value of another kind.
#[derive(Clone, Copy)]
pub struct Value<'a> {
    heap: &'a Heap,
    id: Id,
}

impl<'a> Value<'a> {
    fn node(self) -> &'a Node {
        self.heap.get(self.id)
    }

    fn at(self, id: Id) -> Self {
        Self { heap: self.heap, id }
    }

    /// What tells it from others of its pickle.
    pub(super) fn id(self) -> Id {
        self.id
    }

    /// Whether this is Python's None.
    pub fn is_none(self) -> bool {
        matches!(self.node(), Node::None)
    }

    /// A truth value.
    pub fn bool(self) -> Option<bool> {
        if let Node::Bool(value) = self.node() { Some(*value) } else { None }
    }

    /// A whole number.
    pub fn int(self) -> Option<i64> {
        if let Node::Int(value) = self.node() { i64::try_from(*value).ok() } else { None }
    }

    /// Whether this is a certain number, which may be a large one.
    pub(super) fn is_int(self, number: i128) -> bool {
        matches!(self.node(), Node::Int(value) if *value == number)
    }

    /// A number of either kind.
    pub fn float(self) -> Option<f64> {
        match self.node() {
            Node::Float(value) => Some(*value),
            Node::Int(value) => Some(*value as f64),
            _ => None,
        }
    }

    /// Text; Python 2's strings as latin-1.
    pub fn text(self) -> Option<Cow<'a, str>> {
        match self.node() {
            Node::Text(text) => Some(text.into()),
            Node::Bytes(bytes) => Some(latin1(bytes).into()),
            _ => None,
        }
    }

    /// Text that is short enough to be a name.
    pub(super) fn name(self) -> Option<String> {
        match self.node() {
            Node::Text(text) if text.len() <= LONGEST_NAME => Some(text.clone()),
            Node::Bytes(bytes) if bytes.len() <= LONGEST_NAME => Some(latin1(bytes)),
            _ => None,
        }
    }

    /// Bytes, or a Python 2 string's.
    pub fn bytes(self) -> Option<&'a [u8]> {
        if let Node::Bytes(bytes) = self.node() { Some(bytes) } else { None }
    }

    /// Elements of a list, tuple or set, or of an object derived from them.
    pub fn items(self) -> Option<impl ExactSizeIterator<Item = Self> + DoubleEndedIterator> {
        let items = match self.node() {
            Node::List(items) | Node::Tuple(items) => items,
            Node::Object(object) if !object.items.is_empty() => &object.items,
            _ => return None,
        };
        Some(items.iter().map(move |&id| self.at(id)))
    }

    /// Keys and values of a dictionary, or of an object derived from one, in the file's order.
    pub fn entries(self) -> Option<impl ExactSizeIterator<Item = (Self, Self)> + DoubleEndedIterator> {
        let entries = match self.node() {
            Node::Dict(entries) => entries,
            Node::Object(object) if !object.entries.is_empty() => &object.entries,
            _ => return None,
        };
        Some(entries.iter().map(move |&(key, value)| (self.at(key), self.at(value))))
    }

    /// A dictionary's value for a key.
    pub fn get(self, key: &str) -> Option<Self> {
        let is_it = |id: Id| match self.heap.get(id) {
            Node::Text(text) => text == key,
            // Python 2's keys; those of interest are ASCII.
            Node::Bytes(bytes) => bytes == key.as_bytes(),
            _ => false,
        };
        self.entries()?.rev().find(|(k, _)| is_it(k.id)).map(|(_, value)| value)
    }

    /// A tensor.
    pub fn tensor(self) -> Option<&'a Tensor> {
        if let Node::Tensor(tensor) = self.node() { Some(tensor) } else { None }
    }

    /// A NumPy array of numbers.
    pub fn array(self) -> Option<Array<'a>> {
        let Node::Array(array) = self.node() else { return None };
        let bytes = self.at(array.bytes).bytes()?;
        Some(Array { dtype: array.dtype, shape: &array.shape, fortran: array.fortran, bytes })
    }

    /// Full name of a class or function, or of the class of an object that this module knows nothing about.
    pub fn class(self) -> Option<&'a str> {
        match self.node() {
            Node::Global(name) => Some(name),
            Node::Object(object) => self.at(object.class).class_name(),
            _ => None,
        }
    }

    fn class_name(self) -> Option<&'a str> {
        if let Node::Global(name) = self.node() { Some(name) } else { None }
    }

    /// What such an object was made from.
    pub fn arguments(self) -> Option<Self> {
        if let Node::Object(object) = self.node() { Some(self.at(object.arguments)) } else { None }
    }

    /// The state of such an object, often a dictionary of its fields.
    pub fn state(self) -> Option<Self> {
        if let Node::Object(object) = self.node() { object.state.map(|id| self.at(id)) } else { None }
    }

    /// A few words on what this is, for messages.
    pub fn describe(self) -> String {
        match self.node() {
            Node::None => "None".into(),
            Node::Bool(_) => "a bool".into(),
            Node::Int(_) | Node::Float(_) | Node::Unread => "a number".into(),
            Node::Text(_) => "text".into(),
            Node::Bytes(_) => "bytes".into(),
            Node::List(items) | Node::Tuple(items) => format!("a list of {}", items.len()),
            Node::Dict(entries) => self.describe_entries(entries),
            Node::Global(name) => format!("the class {}", short(name)),
            Node::Storage(_) => "a storage without a shape".into(),
            Node::Tensor(tensor) => format!("one tensor of shape {:?}", tensor.shape()),
            Node::Array(array) => format!("a NumPy array of shape {:?}", array.shape),
            Node::Object(_) => format!("an object of {}", self.class().map_or("unknown class".into(), short)),
        }
    }

    fn describe_entries(self, entries: &[(Id, Id)]) -> String {
        let named = entries.iter().filter_map(|&(key, _)| self.at(key).name()).take(DESCRIBED_KEYS);
        let mut names: Vec<_> = named.map(|name| format!("`{}`", short(&name))).collect();
        if entries.len() > names.len() {
            names.push(format!("{} entries in all", entries.len()));
        }
        format!("a dictionary ({})", names.join(", "))
    }
}

/// A name that fits a message.
fn short(name: &str) -> String {
    name.chars().take(60).flat_map(char::escape_debug).collect()
}

impl std::fmt::Debug for Value<'_> {
    fn fmt(&self, f: &mut std::fmt::Formatter) -> std::fmt::Result {
        f.write_str(&self.describe())
    }
}

/// A NumPy array of numbers.
#[derive(Clone, Copy, Debug, PartialEq)]
pub struct Array<'a> {
    /// Type of the numbers.
    pub dtype: Dtype,
    /// Length of each dimension.
    pub shape: &'a [usize],
    fortran: bool,
    bytes: &'a [u8],
}

impl<'a> Array<'a> {
    /// The numbers' little-endian bytes, last dimension fastest; copied only if the file has the first one fastest.
    pub fn bytes(self) -> Cow<'a, [u8]> {
        let size = self.dtype.size();
        if !self.fortran || self.shape.len() < 2 || self.bytes.is_empty() {
            return self.bytes.into();
        }
        npy::c_order(self.bytes, self.shape, size).into()
    }
}
