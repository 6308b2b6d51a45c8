// Package cluster runs NATS servers with JetStream in the process of a test, joined
// to a cluster on loopback: the set-up on which replicas, leader changes and
// partitions are tried. Single nodes can be stopped, killed, restarted and cut off.
package cluster
