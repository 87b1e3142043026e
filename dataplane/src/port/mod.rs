//! Ports: where frames come in and go out.
