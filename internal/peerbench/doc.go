// Package peerbench measures lockfabric beside etcd, both with one server in this
// process that is reached over loopback TCP:
//
//	go test -C internal/peerbench -run '^$' -bench .
//
// It is a module of its own, so that etcd stays out of lockfabric's dependencies.
// etcd's lock is go.etcd.io/etcd/client/v3/concurrency.Mutex, whose waiters queue
// like ours, and which fences with its key's creation revision.
//
// A waiter of that mutex watches its predecessor's key from the revision that it has
// just read. etcd serves watches that begin in the past in rounds of 100 ms
// (watchResyncPeriod), so a hand-over takes about half of that, and less the more
// waiters there are for a round. That is how the mutex comes, not a setting here.
package peerbench
