//! Writing records of tensors, as the SageMaker SDK's `write_numpy_to_dense_tensor` does.

use super::{Dtype, Tensor, Tensors, Value};

const BYTES: u64 = 2;

impl Tensors {
    /// A record of one dense array, and a label if there is one, under the SDK's name `values`.
    pub fn dense(features: Tensor, label: Option<Tensor>) -> Self {
        let named = |tensor| ("values".to_owned(), Value::Tensor(tensor));
        Self {
            features: vec![named(features)],
            label: label.map(named).into_iter().collect(),
            ..Self::default()
        }
    }

    /// Appends the record's message, which is a RecordIO record's payload
    /// ([`recordio::encode`](crate::record::recordio::encode)).
    pub fn encode(&self, into: &mut Vec<u8>) {
        for (number, map) in [(1, &self.features), (2, &self.label)] {
            for (key, value) in map {
                let mut entry = Vec::new();
                bytes(&mut entry, 1, key.as_bytes());
                bytes(&mut entry, 2, &encode_value(value));
                bytes(into, number, &entry);
            }
        }
        for (number, text) in [
            (3, &self.uid),
            (4, &self.metadata),
            (5, &self.configuration),
        ] {
            if let Some(text) = text {
                bytes(into, number, text.as_bytes());
            }
        }
    }
}

fn encode_value(value: &Value) -> Vec<u8> {
    let (number, message) = match value {
        Value::Tensor(tensor) => (field_of(tensor.dtype), encode_tensor(tensor)),
        Value::Bytes {
            values,
            content_type,
        } => {
            let mut message = Vec::new();
            values
                .iter()
                .for_each(|value| bytes(&mut message, 1, value));
            if let Some(text) = content_type {
                bytes(&mut message, 2, text.as_bytes());
            }
            (9, message)
        }
    };
    let mut into = Vec::with_capacity(message.len() + 12);
    bytes(&mut into, number, &message);
    into
}

fn field_of(dtype: Dtype) -> u64 {
    match dtype {
        Dtype::F32 => 2,
        Dtype::F64 => 3,
        Dtype::I32 => 7,
    }
}

fn encode_tensor(tensor: &Tensor) -> Vec<u8> {
    let mut message = Vec::with_capacity(tensor.values.len() + 32);
    match tensor.dtype {
        Dtype::F32 | Dtype::F64 if tensor.values.is_empty() => {}
        Dtype::F32 | Dtype::F64 => bytes(&mut message, 1, &tensor.values),
        Dtype::I32 => packed(&mut message, 1, integers(&tensor.values)),
    }
    packed(&mut message, 2, tensor.keys.iter().copied());
    packed(&mut message, 3, tensor.shape.iter().copied());
    message
}

/// Protobuf writes a negative int32 as the 64-bit number of the same value.
fn integers(values: &[u8]) -> impl Iterator<Item = u64> {
    values
        .chunks_exact(4)
        .map(|four| i64::from(i32::from_le_bytes(four.try_into().expect("four bytes"))) as u64)
}

fn packed(into: &mut Vec<u8>, number: u64, values: impl Iterator<Item = u64>) {
    let mut run = Vec::new();
    values.for_each(|value| varint(&mut run, value));
    if !run.is_empty() {
        bytes(into, number, &run);
    }
}

fn bytes(into: &mut Vec<u8>, number: u64, value: &[u8]) {
    varint(into, number << 3 | BYTES);
    varint(into, value.len() as u64);
    into.extend_from_slice(value);
}

fn varint(into: &mut Vec<u8>, mut value: u64) {
    while value >= 0x80 {
        into.push(value as u8 | 0x80);
        value >>= 7;
    }
    into.push(value as u8);
}
