//! Whose end revokes what was issued: the process, its cgroup or unit, the node.
