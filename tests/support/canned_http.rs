//! A server that says what it is told to, answer by answer: for answers that a healthy store does not give.

use std::io::{BufRead, BufReader, Read, Write};
use std::net::{TcpListener, TcpStream};
use std::sync::{Arc, Mutex};

/// Each answer serves one request on a connection of its own; afterwards connections are refused.
pub struct CannedServer {
    endpoint: String,
    requests: Arc<Mutex<Vec<String>>>,
}

/// One answer.
pub enum Canned {
    /// Status line's code and text, further header lines (each ending in `\r\n`), body.
    Answer(&'static str, &'static str, String),
    /// These bytes, and then the connection is closed.
    Raw(&'static str),
    /// Nothing, until the client gives up.
    Silence,
}

impl CannedServer {
    /// Starts a server on a free port.
    pub fn start(answers: Vec<Canned>) -> CannedServer {
        let listener = TcpListener::bind("127.0.0.1:0").expect("port");
        let endpoint = format!("http://{}", listener.local_addr().expect("address"));
        let requests = Arc::new(Mutex::new(Vec::new()));
        let seen = Arc::clone(&requests);
        std::thread::spawn(move || {
            for canned in answers {
                let (socket, _) = listener.accept().expect("connection");
                serve(&socket, &canned, &seen);
            }
        });
        CannedServer { endpoint, requests }
    }

    /// The server's URL.
    pub fn endpoint(&self) -> String {
        self.endpoint.clone()
    }

    /// The request lines so far, such as `GET /bucket?list-type=2 HTTP/1.1`.
    pub fn requests(&self) -> Vec<String> {
        self.requests.lock().expect("requests").clone()
    }
}

fn serve(mut socket: &TcpStream, canned: &Canned, seen: &Mutex<Vec<String>>) {
    let mut reader = BufReader::new(socket);
    let mut request = String::new();
    reader.read_line(&mut request).expect("request line");
    seen.lock()
        .expect("requests")
        .push(request.trim().to_owned());
    let mut length = 0;
    loop {
        let mut line = String::new();
        reader.read_line(&mut line).expect("header");
        let line = line.trim().to_ascii_lowercase();
        if let Some(value) = line.strip_prefix("content-length:") {
            length = value.trim().parse().expect("length");
        }
        if line.is_empty() {
            break;
        }
    }
    reader
        .by_ref()
        .take(length)
        .read_to_end(&mut Vec::new())
        .expect("body");
    match canned {
        Canned::Answer(status, headers, body) => {
            let length = body.len();
            write!(
                socket,
                "HTTP/1.1 {status}\r\n{headers}Content-Length: {length}\r\nConnection: close\r\n\r\n{body}"
            )
            .expect("answer");
        }
        Canned::Raw(bytes) => socket.write_all(bytes.as_bytes()).expect("answer"),
        Canned::Silence => {
            let _ = reader.read_to_end(&mut Vec::new());
        }
    }
}
