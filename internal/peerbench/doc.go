// Package peerbench measures lockfabric beside etcd, both with one server in this
// process that is reached over loopback TCP:
//
//	go test -C internal/peerbench -run '^$' -bench .
//
// It is a module of its own, so that etcd stays out of lockfabric's dependencies.
// etcd's lock is go.etcd.io/etcd/client/v3/concurrency.Mutex, whose waiters queue
// like ours, and which fences with its key's creation revision.
package peerbench
