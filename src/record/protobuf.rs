//! The tensors of SageMaker's `application/x-recordio-protobuf`: `aialgs.data.Record` of the SageMaker SDK.
//!
//! ```proto
//! message Float32Tensor { repeated float  values = 1 [packed]; repeated uint64 keys = 2 [packed]; repeated uint64 shape = 3 [packed]; }
//! message Float64Tensor { repeated double values = 1 [packed]; ... }   message Int32Tensor { repeated int32 values = 1 [packed]; ... }
//! message Bytes { repeated bytes value = 1; optional string content_type = 2; }
//! message Value { oneof value { Float32Tensor float32_tensor = 2; Float64Tensor float64_tensor = 3; Int32Tensor int32_tensor = 7; Bytes bytes = 9; } }
//! message Record { map<string, Value> features = 1; map<string, Value> label = 2; optional string uid = 3, metadata = 4, configuration = 5; }
//! ```
//!
//! Values stay little-endian bytes: a consumer looks at them as an array without a copy. A tensor without keys is dense;
//! with keys it is sparse, and `shape` says how large. Nothing is allocated on the word of a shape. As protobuf has it,
//! fields that are not known are skipped, repeated fields may come in pieces, and of a map's equal keys the last counts.

mod encode;
mod wire;

use bytes::{Bytes, BytesMut};

use wire::{Field, Fields, Wire};

/// What a tensor's elements are.
#[derive(Debug, Clone, Copy, PartialEq, Eq, Hash)]
pub enum Dtype {
    /// 32-bit floats.
    F32,
    /// 64-bit floats.
    F64,
    /// 32-bit integers.
    I32,
}

impl Dtype {
    /// Bytes of an element.
    pub fn width_bytes(self) -> usize {
        match self {
            Self::F32 | Self::I32 => 4,
            Self::F64 => 8,
        }
    }
}

/// An array.
#[derive(Debug, Clone, PartialEq, Eq)]
pub struct Tensor {
    /// What its elements are.
    pub dtype: Dtype,
    /// Its elements, little-endian, row by row; of a sparse tensor those that are not zero.
    pub values: Bytes,
    /// Empty: dense. Else, for each value, where it stands in the flattened array.
    pub keys: Vec<u64>,
    /// Its dimensions; empty if the writer did not say: one dimension, as long as there are values.
    pub shape: Vec<u64>,
}

/// One named entry of a record.
#[derive(Debug, Clone, PartialEq, Eq)]
pub enum Value {
    /// An array.
    Tensor(Tensor),
    /// Opaque bytes, such as an image.
    Bytes {
        /// The pieces; most writers make one.
        values: Vec<Bytes>,
        /// Their MIME type.
        content_type: Option<String>,
    },
}

/// An `aialgs.data.Record`. The SDK's writers name everything `values`.
#[derive(Debug, Clone, PartialEq, Eq, Default)]
pub struct Tensors {
    /// The inputs, by name, in the order of the bytes.
    pub features: Vec<(String, Value)>,
    /// The targets, by name, in the order of the bytes.
    pub label: Vec<(String, Value)>,
    /// The record's name.
    pub uid: Option<String>,
    /// Text about the record; JSON by convention.
    pub metadata: Option<String>,
    /// Text for the algorithm.
    pub configuration: Option<String>,
}

impl Tensors {
    /// Reads one record.
    ///
    /// # Errors
    /// What is wrong with the bytes.
    pub fn parse(bytes: &Bytes) -> Result<Self, String> {
        let mut record = Self::default();
        for field in Fields::of(bytes) {
            let Field { number, wire } = field?;
            match number {
                1 => insert(&mut record.features, entry(&wire.bytes("features")?)?),
                2 => insert(&mut record.label, entry(&wire.bytes("label")?)?),
                3 => record.uid = Some(wire.text("uid")?),
                4 => record.metadata = Some(wire.text("metadata")?),
                5 => record.configuration = Some(wire.text("configuration")?),
                _ => {}
            }
        }
        Ok(record)
    }

    /// Bytes of values and keys.
    pub(super) fn len_bytes(&self) -> u64 {
        let entries = self.features.iter().chain(&self.label);
        entries.map(|(_, value)| value.len_bytes()).sum()
    }

    pub(super) fn for_each_payload(&mut self, mut change: impl FnMut(&mut Bytes)) {
        for (_, value) in self.features.iter_mut().chain(&mut self.label) {
            match value {
                Value::Tensor(tensor) => change(&mut tensor.values),
                Value::Bytes { values, .. } => values.iter_mut().for_each(&mut change),
            }
        }
    }
}

fn insert(map: &mut Vec<(String, Value)>, (key, value): (String, Option<Value>)) {
    let Some(value) = value else { return };
    // A record has a handful of names: a look at each costs less than a hash.
    match map.iter_mut().find(|(name, _)| *name == key) {
        Some((_, old)) => *old = value,
        None => map.push((key, value)),
    }
}

/// An entry of a map; without a value if it is of a kind that is not known.
fn entry(bytes: &Bytes) -> Result<(String, Option<Value>), String> {
    let (mut key, mut value) = (String::new(), None);
    for field in Fields::of(bytes) {
        let Field { number, wire } = field?;
        match number {
            1 => key = wire.text("a key")?,
            2 => value = Value::parse(&wire.bytes("a value")?)?,
            _ => {}
        }
    }
    Ok((key, value))
}

impl Value {
    fn parse(bytes: &Bytes) -> Result<Option<Self>, String> {
        let mut value = None;
        for field in Fields::of(bytes) {
            let Field { number, wire } = field?;
            let dtype = match number {
                2 => Dtype::F32,
                3 => Dtype::F64,
                7 => Dtype::I32,
                9 => {
                    value = Some(opaque(&wire.bytes("bytes")?)?);
                    continue;
                }
                _ => continue,
            };
            value = Some(Self::Tensor(Tensor::parse(
                dtype,
                &wire.bytes("a tensor")?,
            )?));
        }
        Ok(value)
    }

    fn len_bytes(&self) -> u64 {
        match self {
            Self::Tensor(tensor) => (tensor.values.len() + 8 * tensor.keys.len()) as u64,
            Self::Bytes { values, .. } => values.iter().map(|bytes| bytes.len() as u64).sum(),
        }
    }
}

fn opaque(bytes: &Bytes) -> Result<Value, String> {
    let (mut values, mut content_type) = (Vec::new(), None);
    for field in Fields::of(bytes) {
        let Field { number, wire } = field?;
        match number {
            1 => values.push(wire.bytes("bytes")?),
            2 => content_type = Some(wire.text("a content type")?),
            _ => {}
        }
    }
    Ok(Value::Bytes {
        values,
        content_type,
    })
}

impl Tensor {
    /// A dense array.
    pub fn dense(dtype: Dtype, values: Bytes, shape: Vec<u64>) -> Self {
        Self {
            dtype,
            values,
            keys: Vec::new(),
            shape,
        }
    }

    /// Values that are there: of a sparse tensor, those that are not zero.
    pub fn len(&self) -> usize {
        self.values.len() / self.dtype.width_bytes()
    }

    /// Whether no value is there.
    pub fn is_empty(&self) -> bool {
        self.values.is_empty()
    }

    fn parse(dtype: Dtype, bytes: &Bytes) -> Result<Self, String> {
        let mut values = Values::new(dtype);
        let (mut keys, mut shape) = (Vec::new(), Vec::new());
        for field in Fields::of(bytes) {
            let Field { number, wire } = field?;
            match number {
                1 => values.add(wire)?,
                2 => wire.varints("keys", |key| keys.push(key))?,
                3 => wire.varints("shape", |side| shape.push(side))?,
                _ => {}
            }
        }
        let tensor = Self {
            dtype,
            values: values.finish(),
            keys,
            shape,
        };
        tensor.check()?;
        Ok(tensor)
    }

    /// That values, keys and shape belong together.
    fn check(&self) -> Result<(), String> {
        let values = self.len() as u64;
        let size = self
            .shape
            .iter()
            .try_fold(1u64, |size, side| size.checked_mul(*side));
        let Some(size) = size else {
            return Err(format!(
                "a tensor's shape {:?} has more than 2^64 elements",
                self.shape
            ));
        };
        if self.keys.is_empty() {
            return match self.shape.is_empty() || size == values {
                true => Ok(()),
                // An empty sparse tensor has a shape and nothing else.
                false if values == 0 => Ok(()),
                false => Err(format!(
                    "{values} values in a tensor of shape {:?}",
                    self.shape
                )),
            };
        }
        if self.keys.len() as u64 != values {
            return Err(format!(
                "{values} values with {} keys in a sparse tensor",
                self.keys.len()
            ));
        }
        match self
            .keys
            .iter()
            .find(|key| !self.shape.is_empty() && **key >= size)
        {
            Some(key) => Err(format!(
                "key {key} in a sparse tensor of shape {:?}",
                self.shape
            )),
            None => Ok(()),
        }
    }
}

/// A tensor's values as they come: one packed run is kept as a slice, anything else is put together.
#[derive(Debug)]
struct Values {
    dtype: Dtype,
    whole: Bytes,
    joined: BytesMut,
}

impl Values {
    fn new(dtype: Dtype) -> Self {
        Self {
            dtype,
            whole: Bytes::new(),
            joined: BytesMut::new(),
        }
    }

    fn add(&mut self, wire: Wire) -> Result<(), String> {
        if self.dtype == Dtype::I32 {
            // Negative numbers are written as 64 bits, of which the low half counts.
            return wire.varints("values", |value| {
                self.joined.extend_from_slice(&(value as u32).to_le_bytes());
            });
        }
        let run = wire.fixed(self.dtype.width_bytes(), "values")?;
        if self.whole.is_empty() && self.joined.is_empty() {
            self.whole = run;
        } else {
            let first = std::mem::take(&mut self.whole);
            self.joined.extend_from_slice(&first);
            self.joined.extend_from_slice(&run);
        }
        Ok(())
    }

    fn finish(self) -> Bytes {
        match self.joined.is_empty() {
            true => self.whole,
            false => self.joined.freeze(),
        }
    }
}
