// Package embedded runs a NATS server with JetStream inside the calling process, so that a lock service needs nothing
// installed beside it: tests, examples, single binaries and the daemon use it.
//
// [Start] runs one server on a store directory. By default it has no network listener at all (reach it with
// [Server.Connect]), logs nothing, and syncs every write to disk before it is acknowledged. [WithCluster] joins it to
// others, as one of a cluster.
//
// # What is guaranteed
//
//   - When Start returns nil, JetStream is up and the store has been recovered.
//   - One server per store directory, also across processes: the second one
//     gets [ErrStoreInUse]. The lock is the operating system's, so that it is
//     free again as soon as the owner's process is gone, however it ended.
//   - With [SyncAlways], the default, an acknowledged write survives a power
//     failure as far as the disk keeps its own promises. With [SyncInterval]
//     it survives the end of the process, but a power failure or a crash of
//     the operating system may lose the acknowledged writes of the last
//     interval; locks granted in that time can then be granted again.
//   - A listener that other hosts reach asks who they are, unless
//     [WithAllowNonLoopback] is given: Start refuses it otherwise, see
//     [OpenListenerError]. On loopback nobody is asked without [WithUser],
//     [WithToken], [WithNKey] or [WithClientCA]: every user of the host may use
//     the store then. [WithTLS] encrypts; without it a server that others reach
//     logs a warning.
//   - The servers of a cluster ask each other with [WithClusterAuth] or
//     [WithClusterTLS]. On an address that other hosts reach one is needed.
//   - [Server.Connect] works with all of them, with a key of its own that is good
//     inside the process only. The exception is said at [ErrCredentials].
//
// # Configuration files
//
// [WithConfigFile] takes everything from a file of nats-server instead. What this package promises stays: writes are
// synced unless the file says otherwise, the store is one server's, and the addresses are checked. [Server.Reload]
// reads the file, and certificates, again.
//
// # How it fails
//
// Everything that can be wrong is an error of Start: nonsense options, and files that can't be used, are
// [ErrInvalidOption], a store that belongs to another server is [ErrStoreInUse], and whatever makes the server give
// up (an address in use, a store it can't read, a full disk) is [ErrStartFailed] with the server's own reason. The
// server never ends the process and installs no signal handlers. A server that runs can come to a point where it
// can't write its store any more, for a full disk: [Server.Health] tells, and only another Start helps.
//
//	         Start                     Shutdown
//	(none) --------> starting --> ready --------> stopping --> stopped
//	                    |                                        ^
//	                    +---- error: store lock released --------+
package embedded
