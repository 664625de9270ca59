//! Checking what a caller of a tool presents, for tools: on the socket, over HTTP, and of other nodes.
