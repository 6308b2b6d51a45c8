// Package benchmarks measures lockfabric beside the bare writes that it can't do without, etcd's recipes and Redis, each
// with one server on this machine that is reached over loopback TCP. README.md says how.
//
// It is a module of its own, so that the others stay out of lockfabric's dependencies.
package benchmarks
