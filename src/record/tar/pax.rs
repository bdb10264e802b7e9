//! Extended headers: pax records and GNU long names, which come before the header of their file.

use super::header::until_nul;

#[derive(Debug, Clone, Copy, PartialEq, Eq)]
pub(super) enum Kind {
    Pax,
    LongName,
    /// Long link names and global headers.
    Ignored,
}

/// What they say of the next file.
#[derive(Debug, Default)]
pub(super) struct Extended {
    pub(super) path: Option<String>,
    pub(super) size: Option<u64>,
}

impl Extended {
    pub(super) fn read(&mut self, kind: Kind, data: &[u8]) -> Result<(), String> {
        match kind {
            Kind::Ignored => Ok(()),
            Kind::LongName => {
                self.path = Some(until_nul(data).into_owned());
                Ok(())
            }
            Kind::Pax => self.read_pax(data),
        }
    }

    /// Records of the form `LENGTH KEY=VALUE\n`, where the length counts itself and the line's end.
    fn read_pax(&mut self, mut data: &[u8]) -> Result<(), String> {
        while !data.is_empty() {
            let (record, rest) =
                record(data).ok_or("a pax header of a tar archive that is no list of records")?;
            data = rest;
            let equals =
                memchr::memchr(b'=', record).ok_or("a pax record without `=` in a tar archive")?;
            let (key, value) = (&record[..equals], &record[equals + 1..]);
            match key {
                b"path" => self.path = Some(String::from_utf8_lossy(value).into_owned()),
                b"size" => {
                    let size = std::str::from_utf8(value)
                        .ok()
                        .and_then(|text| text.parse().ok());
                    self.size = Some(size.ok_or("a pax size of a tar archive that is no number")?);
                }
                _ if key.starts_with(b"GNU.sparse.") => {
                    return Err(
                        "a sparse file in a tar archive: its bytes are not the file's".into(),
                    );
                }
                _ => {}
            }
        }
        Ok(())
    }
}

/// The first record without length and line end, and what follows it.
fn record(data: &[u8]) -> Option<(&[u8], &[u8])> {
    let blank = memchr::memchr(b' ', &data[..data.len().min(20)])?;
    let len: usize = std::str::from_utf8(&data[..blank]).ok()?.parse().ok()?;
    let line = data.get(blank + 1..len)?;
    Some((line.strip_suffix(b"\n")?, &data[len..]))
}
