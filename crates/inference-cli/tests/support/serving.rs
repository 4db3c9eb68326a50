//! The program as a server.

use std::{
    io::{BufRead as _, BufReader, Read as _, Write as _},
    net::TcpStream,
    process::{Child, Stdio},
};

use serde_json::Value;

use super::inference;

/// A server that ends with the test.
pub struct Serving {
    pub child: Child,
    pub address: String,
}

impl Serving {
    pub fn start(arguments: &[&str]) -> Self {
        let mut command = inference(&["serve", "--port", "0", "--grace", "0"]);
        let mut child = command.args(arguments).stderr(Stdio::piped()).spawn().unwrap();
        let mut lines = BufReader::new(child.stderr.take().unwrap()).lines();
        let line = lines.by_ref().map(Result::unwrap).find(|line| line.contains("listening on ")).unwrap();
        let address = line.rsplit("//").next().unwrap().to_owned();
        // Nobody reads further, but a full pipe would hold the server up.
        std::thread::spawn(move || lines.for_each(drop));
        Self { child, address }
    }

    /// The answer's status and body.
    pub fn post(&self, path: &str, body: &Value) -> (u16, String) {
        let mut stream = TcpStream::connect(&self.address).unwrap();
        let body = body.to_string();
        let length = body.len();
        write!(
            stream,
            "POST {path} HTTP/1.1\r\nhost: localhost\r\nconnection: close\r\ncontent-type: application/json\r\n\
             content-length: {length}\r\n\r\n{body}"
        )
        .unwrap();
        let mut answer = String::new();
        stream.read_to_string(&mut answer).unwrap();
        let status = answer[9..12].parse().unwrap();
        (status, answer.split_once("\r\n\r\n").unwrap().1.to_owned())
    }
}

impl Drop for Serving {
    fn drop(&mut self) {
        let _ = self.child.kill();
        let _ = self.child.wait();
    }
}
