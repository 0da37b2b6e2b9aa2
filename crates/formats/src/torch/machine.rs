//! The pickle machine. It executes nothing: functions are looked up in the closed list of `calls.rs`, and a call of any
//! other becomes an object that remembers its class and arguments.

use super::source::{Source, latin1, literal, long, unescape};
use super::value::{Heap, Id, Node, ObjectNode};
use super::{Fault, op};
use std::collections::HashMap;
use std::io::BufRead;

/// Instructions of one pickle. Checkpoints have some ten thousand, a batch of ImageNet32 a few hundred thousand. Each may make a
/// value, and a deflated pickle has a thousand of them to a byte of its file.
const MOST_STEPS: u32 = 1_000_000;

/// Bytes of a module's or function's name.
const LONGEST_NAME: usize = 500;

/// Reads one pickle, and nothing beyond its end.
///
/// # Errors
/// Damage; more than [`MOST_STEPS`] instructions.
pub(super) fn load(source: &mut Source<impl BufRead>) -> Result<(Heap, Id), Fault> {
    let budget = Budget(source.left());
    let mut machine =
        Machine { source, heap: Heap::default(), stack: Vec::new(), marks: Vec::new(), memo: HashMap::new(), budget };
    for _ in 0..MOST_STEPS {
        let op = machine.source.byte()?;
        if op == op::STOP {
            let root = machine.pop()?;
            return Ok((machine.heap, root));
        }
        machine.step(op)?;
    }
    Err(format!("is not a checkpoint: its pickle has more than {MOST_STEPS} instructions"))
}

pub(super) struct Machine<'a, R> {
    source: &'a mut Source<R>,
    pub(super) heap: Heap,
    stack: Vec<Id>,
    /// Heights of the stack.
    marks: Vec<usize>,
    memo: HashMap<u32, Id>,
    pub(super) budget: Budget,
}

/// Bytes that may be copied inside the machine, as many as the pickle has. Else a few of its bytes could repeat a long
/// text without end.
pub(super) struct Budget(u64);

impl Budget {
    /// Takes memory for a copy.
    pub(super) fn spend(&mut self, bytes: usize) -> Result<(), Fault> {
        let left = self.0.checked_sub(bytes as u64);
        self.0 = left.ok_or("is damaged: its pickle repeats itself too often")?;
        Ok(())
    }
}

impl<R: BufRead> Machine<'_, R> {
    fn step(&mut self, op: u8) -> Result<(), Fault> {
        let node = match self.scalar(op)? {
            Some(node) => Some(node),
            None => self.string(op)?,
        };
        if let Some(node) = node {
            self.push(node);
            return Ok(());
        }
        if self.arrange(op)? || self.collect(op)? || self.construct(op)? {
            return Ok(());
        }
        Err(format!("is damaged: its pickle has the unknown instruction {op:#04x}"))
    }

    /// Numbers and constants.
    fn scalar(&mut self, op: u8) -> Result<Option<Node>, Fault> {
        let whole = |value: Option<i128>| value.map_or(Node::Unread, Node::Int);
        Ok(Some(match op {
            op::NONE => Node::None,
            op::NEWTRUE => Node::Bool(true),
            op::NEWFALSE => Node::Bool(false),
            op::BININT => Node::Int(i32::from_le_bytes(self.source.array()?).into()),
            op::BININT1 => Node::Int(self.source.byte()?.into()),
            op::BININT2 => Node::Int(u16::from_le_bytes(self.source.array()?).into()),
            op::INT => match self.source.line()?.as_slice() {
                b"00" => Node::Bool(false),
                b"01" => Node::Bool(true),
                digits => whole(std::str::from_utf8(digits).ok().and_then(|d| d.parse().ok())),
            },
            op::LONG => {
                let digits = self.source.line()?;
                whole(std::str::from_utf8(&digits).ok().and_then(|d| d.trim_end_matches('L').parse().ok()))
            }
            op::LONG1 | op::LONG4 => {
                let length = self.length(if op == op::LONG1 { 1 } else { 4 })?;
                whole(long(&self.source.take(length)?))
            }
            op::FLOAT => Node::Float(self.source.parse()?),
            op::BINFLOAT => Node::Float(f64::from_be_bytes(self.source.array()?)),
            _ => return Ok(None),
        }))
    }

    /// Text and bytes.
    fn string(&mut self, op: u8) -> Result<Option<Node>, Fault> {
        let bad = || "is damaged: its pickle has a string that is not valid text".to_string();
        let width = match op {
            op::SHORT_BINUNICODE | op::SHORT_BINBYTES | op::SHORT_BINSTRING => 1,
            op::BINUNICODE | op::BINBYTES | op::BINSTRING => 4,
            op::BINUNICODE8 | op::BINBYTES8 | op::BYTEARRAY8 => 8,
            op::STRING => return literal(&self.source.line()?).map(|b| Some(Node::Bytes(b))).ok_or_else(bad),
            op::UNICODE => return unescape(&self.source.line()?).map(|t| Some(Node::Text(t))).ok_or_else(bad),
            _ => return Ok(None),
        };
        let length = self.length(width)?;
        Ok(Some(match op {
            op::SHORT_BINUNICODE | op::BINUNICODE | op::BINUNICODE8 => Node::Text(self.source.text(length)?),
            _ => Node::Bytes(self.source.take(length)?),
        }))
    }

    /// Stack and memo.
    fn arrange(&mut self, op: u8) -> Result<bool, Fault> {
        match op {
            op::MARK => self.marks.push(self.stack.len()),
            op::POP if self.marks.last() == Some(&self.stack.len()) => drop(self.marks.pop()),
            op::POP => drop(self.pop()?),
            op::POP_MARK => drop(self.pop_mark()?),
            op::DUP => self.stack.push(self.top()?),
            op::PUT | op::BINPUT | op::LONG_BINPUT | op::MEMOIZE => {
                let place = match op {
                    op::PUT => self.source.parse()?,
                    op::BINPUT => self.length(1)? as u32,
                    op::LONG_BINPUT => self.length(4)? as u32,
                    _ => self.memo.len() as u32,
                };
                let top = self.top()?;
                self.memo.insert(place, top);
            }
            op::GET | op::BINGET | op::LONG_BINGET => {
                let place = match op {
                    op::GET => self.source.parse()?,
                    op::BINGET => self.length(1)? as u32,
                    _ => self.length(4)? as u32,
                };
                let id = self.memo.get(&place).ok_or("is damaged: its pickle refers to a value that is not there")?;
                self.stack.push(*id);
            }
            op::PROTO => {
                let protocol = self.source.byte()?;
                if protocol > 5 {
                    return Err(format!(
                        "has pickle protocol {protocol}, but only protocols up to 5 are supported: save it with a \
                         lower one"
                    ));
                }
            }
            op::FRAME => drop(self.source.array::<8>()?),
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Lists, tuples and dictionaries.
    fn collect(&mut self, op: u8) -> Result<bool, Fault> {
        match op {
            op::EMPTY_LIST | op::EMPTY_SET => self.push(Node::List(Vec::new())),
            op::EMPTY_TUPLE => self.push(Node::Tuple(Vec::new())),
            op::EMPTY_DICT => self.push(Node::Dict(Vec::new())),
            op::TUPLE1 | op::TUPLE2 | op::TUPLE3 => {
                let mut items = Vec::with_capacity(3);
                for _ in op::TUPLE1..=op {
                    items.push(self.pop()?);
                }
                items.reverse();
                self.push(Node::Tuple(items));
            }
            op::TUPLE | op::LIST | op::FROZENSET => {
                let items = self.pop_mark()?;
                self.push(if op == op::TUPLE { Node::Tuple(items) } else { Node::List(items) });
            }
            op::DICT => {
                let entries = pairs(self.pop_mark()?)?;
                self.push(Node::Dict(entries));
            }
            op::APPEND => {
                let item = self.pop()?;
                self.extend(&[item])?;
            }
            op::APPENDS | op::ADDITEMS => {
                let items = self.pop_mark()?;
                self.extend(&items)?;
            }
            op::SETITEM => {
                let value = self.pop()?;
                let key = self.pop()?;
                self.insert(&[(key, value)])?;
            }
            op::SETITEMS => {
                let entries = pairs(self.pop_mark()?)?;
                self.insert(&entries)?;
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    /// Classes, functions and what they would make.
    fn construct(&mut self, op: u8) -> Result<bool, Fault> {
        match op {
            op::GLOBAL => {
                let class = self.global_of_lines()?;
                self.stack.push(class);
            }
            op::STACK_GLOBAL => {
                let name = self.pop()?;
                let module = self.pop()?;
                let (Node::Text(module), Node::Text(name)) = (self.heap.get(module), self.heap.get(name)) else {
                    return Err("is damaged: its pickle names a class by something other than text".into());
                };
                let class = global(module, name)?;
                self.budget.spend(class.len())?;
                self.push(Node::Global(class));
            }
            op::REDUCE | op::NEWOBJ | op::NEWOBJ_EX => {
                // Named arguments are of no use for anything known.
                if op == op::NEWOBJ_EX {
                    self.pop()?;
                }
                let arguments = self.pop()?;
                let class = self.pop()?;
                let made = self.call(class, arguments)?;
                self.stack.push(made);
            }
            op::INST | op::OBJ => {
                let named = if op == op::INST { Some(self.global_of_lines()?) } else { None };
                let mut items = self.pop_mark()?;
                let class = match named {
                    Some(class) => class,
                    None if items.is_empty() => return Err(underflow()),
                    None => items.remove(0),
                };
                let arguments = self.heap.add(Node::Tuple(items));
                let made = self.call(class, arguments)?;
                self.stack.push(made);
            }
            op::BUILD => {
                let state = self.pop()?;
                let target = self.top()?;
                self.build(target, state);
            }
            op::PERSID => {
                return Err(
                    "has pickle protocol 0, which cannot hold tensors: save it with PyTorch's default, 2".into()
                );
            }
            op::BINPERSID => {
                let id = self.pop()?;
                let made = self.persistent(id)?;
                self.stack.push(made);
            }
            _ => return Ok(false),
        }
        Ok(true)
    }

    fn global_of_lines(&mut self) -> Result<Id, Fault> {
        let module = self.source.line()?;
        let name = self.source.line()?;
        let class = global(&latin1(&module), &latin1(&name))?;
        Ok(self.heap.add(Node::Global(class)))
    }

    /// An object of which nothing is known but what it was made from.
    pub(super) fn object(&mut self, class: Id, arguments: Id) -> Id {
        let object = ObjectNode { class, arguments, state: None, items: Vec::new(), entries: Vec::new() };
        self.heap.add(Node::Object(Box::new(object)))
    }

    fn extend(&mut self, new: &[Id]) -> Result<(), Fault> {
        let target = self.top()?;
        match self.heap.get_mut(target) {
            Node::List(items) => items.extend(new),
            Node::Object(object) => object.items.extend(new),
            _ => return Err("is damaged: its pickle appends to something that is not a list".into()),
        }
        Ok(())
    }

    fn insert(&mut self, new: &[(Id, Id)]) -> Result<(), Fault> {
        let target = self.top()?;
        match self.heap.get_mut(target) {
            Node::Dict(entries) => entries.extend(new),
            Node::Object(object) => object.entries.extend(new),
            _ => return Err("is damaged: its pickle sets keys of something that is not a dictionary".into()),
        }
        Ok(())
    }

    /// An unsigned number of `width` bytes.
    fn length(&mut self, width: usize) -> Result<u64, Fault> {
        Ok(match width {
            1 => self.source.byte()?.into(),
            4 => u32::from_le_bytes(self.source.array()?).into(),
            _ => u64::from_le_bytes(self.source.array()?),
        })
    }

    fn push(&mut self, node: Node) {
        let id = self.heap.add(node);
        self.stack.push(id);
    }

    fn top(&self) -> Result<Id, Fault> {
        self.stack.last().copied().ok_or_else(underflow)
    }

    fn pop(&mut self) -> Result<Id, Fault> {
        let floor = self.marks.last().copied().unwrap_or(0);
        if self.stack.len() <= floor {
            return Err(underflow());
        }
        self.stack.pop().ok_or_else(underflow)
    }

    fn pop_mark(&mut self) -> Result<Vec<Id>, Fault> {
        let mark = self.marks.pop().ok_or_else(underflow)?;
        Ok(self.stack.split_off(mark))
    }
}

fn underflow() -> Fault {
    "is damaged: its pickle takes a value that is not there".into()
}

fn pairs(items: Vec<Id>) -> Result<Vec<(Id, Id)>, Fault> {
    let (pairs, rest) = items.as_chunks::<2>();
    if rest.is_empty() { Ok(pairs.iter().map(|&[k, v]| (k, v)).collect()) } else { Err(underflow()) }
}

/// The full name of a class or function.
fn global(module: &str, name: &str) -> Result<String, Fault> {
    if module.len() > LONGEST_NAME || name.len() > LONGEST_NAME {
        return Err("is damaged: its pickle has a class name without an end".into());
    }
    // Python 2's name, which protocols up to 2 keep.
    let module = if module == "__builtin__" { "builtins" } else { module };
    Ok(format!("{module}.{name}"))
}
