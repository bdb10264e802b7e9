//! As much XML as S3 speaks: flat documents written in order, and single elements found in short ones.

/// A document being written.
#[derive(Debug)]
pub(crate) struct Xml {
    text: String,
}

impl Xml {
    pub(crate) fn document() -> Xml {
        Xml {
            text: "<?xml version=\"1.0\" encoding=\"UTF-8\"?>\n".to_owned(),
        }
    }

    /// The root element, in S3's namespace.
    pub(crate) fn root(&mut self, name: &str) {
        self.text.push_str(&format!(
            "<{name} xmlns=\"http://s3.amazonaws.com/doc/2006-03-01/\">"
        ));
    }

    /// A piece to go into a document.
    pub(crate) fn fragment() -> Xml {
        Xml {
            text: String::new(),
        }
    }

    /// Text that is XML already.
    pub(crate) fn raw(&mut self, xml: &str) {
        self.text.push_str(xml);
    }

    pub(crate) fn open(&mut self, name: &str) {
        self.tag("<", name);
    }

    pub(crate) fn close(&mut self, name: &str) {
        self.tag("</", name);
    }

    /// An element with text in it.
    pub(crate) fn text(&mut self, name: &str, value: &str) {
        self.open(name);
        escape(&mut self.text, value);
        self.close(name);
    }

    pub(crate) fn finish(self) -> String {
        self.text
    }

    fn tag(&mut self, start: &str, name: &str) {
        self.text.push_str(start);
        self.text.push_str(name);
        self.text.push('>');
    }
}

/// Control characters become references: XML 1.0 can't hold most of them, which is why `encoding-type=url` exists; S3
/// sends them all the same.
fn escape(out: &mut String, value: &str) {
    for c in value.chars() {
        match c {
            '&' => out.push_str("&amp;"),
            '<' => out.push_str("&lt;"),
            '>' => out.push_str("&gt;"),
            '"' => out.push_str("&quot;"),
            c if c < ' ' => out.push_str(&format!("&#x{:x};", c as u32)),
            c => out.push(c),
        }
    }
}

/// The raw texts of all elements of that name, without attributes, in order.
pub(crate) fn elements<'a>(document: &'a str, name: &str) -> Vec<&'a str> {
    let (open, close) = (format!("<{name}>"), format!("</{name}>"));
    let mut rest = document;
    let mut found = Vec::new();
    while let Some(start) = rest.find(&open) {
        let inner = &rest[start + open.len()..];
        let Some(end) = inner.find(&close) else { break };
        found.push(&inner[..end]);
        rest = &inner[end + close.len()..];
    }
    found
}

/// The text of an element with its references resolved.
pub(crate) fn unescape(text: &str) -> String {
    text.replace("&quot;", "\"")
        .replace("&#34;", "\"")
        .replace("&lt;", "<")
        .replace("&gt;", ">")
        .replace("&amp;", "&")
}

#[cfg(test)]
mod tests {
    use super::*;

    #[test]
    fn written_texts_are_found_again() {
        let mut xml = Xml::document();
        xml.root("A");
        xml.text("K", "a<b>&\"c\"");
        xml.text("K", "line\nbreak");
        xml.close("A");
        let text = xml.finish();
        assert!(text.contains("line&#xa;break"));
        assert_eq!(elements(&text, "K").len(), 2);
        assert_eq!(unescape(elements(&text, "K")[0]), "a<b>&\"c\"");
    }
}
