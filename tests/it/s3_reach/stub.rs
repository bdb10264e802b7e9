//! Servers that play what stands around S3: a proxy, a metadata service, a token service.

use std::io::{self, BufRead, BufReader, Read, Write};
use std::net::{Shutdown, SocketAddr, TcpListener, TcpStream};
use std::sync::atomic::{AtomicBool, Ordering};
use std::sync::{Arc, Mutex};
use std::thread::JoinHandle;

/// How long a token of a metadata service is to be good for, and is.
pub(super) const TOKEN_TTL: &str = "x-aws-ec2-metadata-token-ttl-seconds";

/// A request as it came.
#[derive(Debug, Clone)]
pub(super) struct Seen {
    pub(super) method: String,
    pub(super) target: String,
    headers: Vec<(String, String)>,
    pub(super) body: String,
}

impl Seen {
    pub(super) fn header(&self, name: &str) -> Option<&str> {
        let mut named = self.headers.iter();
        let found = named.find(|(given, _)| given.eq_ignore_ascii_case(name))?;
        Some(&found.1)
    }

    /// `None` at the end of the connection.
    fn read(from: &mut impl BufRead) -> io::Result<Option<Seen>> {
        let first = line(from)?;
        let mut words = first.split(' ').map(str::to_owned);
        let (Some(method), Some(target)) = (words.next(), words.next()) else {
            return Ok(None);
        };
        let mut headers = Vec::new();
        while let Some((name, value)) = line(from)?.split_once(':') {
            headers.push((name.to_owned(), value.trim().to_owned()));
        }
        let mut seen = Seen {
            method,
            target,
            headers,
            body: String::new(),
        };
        let length = seen.header("content-length");
        let length = length.map_or(0, |length| length.parse().unwrap());
        from.take(length).read_to_string(&mut seen.body)?;
        Ok(Some(seen))
    }

    fn write(&self, to: &mut impl Write) -> io::Result<()> {
        let mut text = format!("{} {} HTTP/1.1\r\n", self.method, self.target);
        for (name, value) in &self.headers {
            text.push_str(&format!("{name}: {value}\r\n"));
        }
        to.write_all(format!("{text}\r\n{}", self.body).as_bytes())
    }
}

fn line(from: &mut impl BufRead) -> io::Result<String> {
    let mut line = String::new();
    from.read_line(&mut line)?;
    Ok(line.trim_end().to_owned())
}

/// What was seen so far.
#[derive(Debug, Clone, Default)]
struct Log(Arc<Mutex<Vec<Seen>>>);

impl Log {
    fn note(&self, seen: &Seen) {
        self.0.lock().unwrap().push(seen.clone());
    }
}

/// A server on loopback, until it is dropped.
pub(super) struct Stub {
    addr: SocketAddr,
    log: Log,
    stop: Arc<AtomicBool>,
    accept: Option<JoinHandle<()>>,
}

impl Stub {
    /// Answers every request with a status and a body.
    pub(super) fn answering(
        answer: impl Fn(&Seen) -> (u16, String) + Send + Sync + 'static,
    ) -> Stub {
        Stub::start(move |mut client, log| {
            while let Some(seen) = Seen::read(&mut client)? {
                log.note(&seen);
                let (status, body) = answer(&seen);
                // A metadata service repeats how long its token is good for.
                let lifetime = seen.header(TOKEN_TTL).unwrap_or("1");
                let length = body.len();
                let text = format!(
                    "HTTP/1.1 {status} Stub\r\nContent-Length: {length}\r\n{TOKEN_TTL}: {lifetime}\r\n\r\n{body}"
                );
                client.get_mut().write_all(text.as_bytes())?;
            }
            Ok(())
        })
    }

    /// A proxy for which every host is `upstream`. It forwards plain requests and opens tunnels for `CONNECT`.
    pub(super) fn proxy(upstream: SocketAddr) -> Stub {
        Stub::start(move |client, log| forward(client, TcpStream::connect(upstream)?, log))
    }

    fn start(
        serve: impl Fn(BufReader<TcpStream>, &Log) -> io::Result<()> + Send + Sync + 'static,
    ) -> Stub {
        let listener = TcpListener::bind("127.0.0.1:0").unwrap();
        let addr = listener.local_addr().unwrap();
        let (log, stop) = (Log::default(), Arc::<AtomicBool>::default());
        let (serve, notes, ends) = (Arc::new(serve), log.clone(), stop.clone());
        let accept = std::thread::spawn(move || {
            while let Ok((client, _)) = listener.accept() {
                if ends.load(Ordering::Acquire) {
                    return;
                }
                let (serve, log) = (serve.clone(), notes.clone());
                // Ends when its client does; one that breaks off is nothing to us.
                std::thread::spawn(move || serve(BufReader::new(client), &log));
            }
        });
        Stub {
            addr,
            log,
            stop,
            accept: Some(accept),
        }
    }

    pub(super) fn addr(&self) -> SocketAddr {
        self.addr
    }

    pub(super) fn url(&self) -> String {
        format!("http://{}", self.addr)
    }

    pub(super) fn seen(&self) -> Vec<Seen> {
        self.log.0.lock().unwrap().clone()
    }
}

impl Drop for Stub {
    fn drop(&mut self) {
        self.stop.store(true, Ordering::Release);
        // Wakes the thread that accepts.
        let _ = TcpStream::connect(self.addr);
        if let Some(accept) = self.accept.take() {
            let _ = accept.join();
        }
    }
}

fn forward(mut client: BufReader<TcpStream>, upstream: TcpStream, log: &Log) -> io::Result<()> {
    let Some(first) = Seen::read(&mut client)? else {
        return Ok(());
    };
    log.note(&first);
    let tunnel = first.method == "CONNECT";
    if tunnel {
        client.get_mut().write_all(b"HTTP/1.1 200 Tunnel\r\n\r\n")?;
    }
    let back = answers(upstream.try_clone()?, client.get_ref().try_clone()?);
    let sent = match tunnel {
        true => io::copy(&mut client, &mut &upstream).map(|_| ()),
        false => requests(first, &mut client, &upstream, log),
    };
    let _ = upstream.shutdown(Shutdown::Both);
    let _ = back.join();
    sent
}

fn answers(mut upstream: TcpStream, mut client: TcpStream) -> JoinHandle<()> {
    std::thread::spawn(move || {
        let _ = io::copy(&mut upstream, &mut client);
        let _ = client.shutdown(Shutdown::Both);
    })
}

fn requests(
    first: Seen,
    client: &mut BufReader<TcpStream>,
    mut upstream: &TcpStream,
    log: &Log,
) -> io::Result<()> {
    first.write(&mut upstream)?;
    while let Some(seen) = Seen::read(client)? {
        log.note(&seen);
        seen.write(&mut upstream)?;
    }
    Ok(())
}
