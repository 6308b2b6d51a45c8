// Package embedded runs a NATS server with JetStream inside the calling process, so that a lock service needs no
// installed server. Tests, examples, single binaries and the daemon use it.
//
// [Start] runs one server with a store directory. By default it has no network listener (connect with
// [Server.Connect]), logs nothing, and syncs every write to disk before it acknowledges the write. With [WithCluster],
// the server is a member of a cluster.
//
// # What is guaranteed
//
//   - When Start returns nil, JetStream is running and the store is recovered.
//   - A store directory has one server, even between processes: a second one gets [ErrStoreInUse]. The lock is the
//     operating system's, so it ends with the owner's process, however that ends.
//   - With [SyncAlways], the default, an acknowledged write survives a power failure, as far as the disk keeps what it
//     has synced. With [SyncInterval] it survives the end of the process, but a power failure or a crash of the
//     operating system may lose the acknowledged writes of the last interval. Locks that were granted in this time can
//     then be granted again.
//   - A listener that other hosts can reach authenticates its clients. Otherwise Start refuses it (see
//     [OpenListenerError]), unless [WithAllowNonLoopback] is given. A listener on loopback authenticates clients only
//     with [WithUser], [WithToken], [WithNKey] or [WithClientCA]; without these, every user of the host may use the
//     store. [WithTLS] encrypts connections. Without it, a server that others can reach logs a warning.
//   - The servers of a cluster authenticate each other with [WithClusterAuth] or [WithClusterTLS]. On an address that
//     other hosts can reach, one of these is required.
//   - [Server.Connect] works with all of these settings. It uses a key that is valid inside the process only.
//     [ErrCredentials] describes the exception.
//
// # Configuration files
//
// With [WithConfigFile], all settings come from a file of nats-server. The guarantees of this package stay: writes are
// synced unless the file says otherwise, a store has one server, and the addresses are checked. [Server.Reload] reads
// the file and the certificates again.
//
// # Failures
//
// Everything that is wrong is an error of Start. Invalid options and unusable files are [ErrInvalidOption]. A store
// that another server uses is [ErrStoreInUse]. Everything that makes the server fail (an address in use, an unreadable
// store, a full disk) is [ErrStartFailed], with the server's own reason. The server never ends the process and installs
// no signal handlers. A running server can become unable to write its store, for example when the disk is full.
// [Server.Health] reports this; only a new Start helps.
//
//	         Start                     Shutdown
//	(none) --------> starting --> ready --------> stopping --> stopped
//	                    |                                        ^
//	                    +---- error: store lock released --------+
package embedded
