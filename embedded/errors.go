package embedded

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalidOption is returned by Start if an option, or a combination of options, is invalid. Nothing was started
	// and nothing was written. The message names the option and says what to do.
	ErrInvalidOption = errors.New("embedded: invalid option")

	// ErrStoreInUse is returned by Start if another server, in this process or another one, uses the store directory.
	// Use another directory, stop that server, or connect to it. errors.As with *StoreInUseError tells which server it
	// is.
	ErrStoreInUse = errors.New("embedded: store directory is in use")

	// ErrStartFailed is returned by Start if the server failed to start: the address is in use, the store can't be
	// read, or its disk is full. The message contains the server's reason. The store lock has been released.
	ErrStartFailed = errors.New("embedded: server failed to start")

	// ErrStoreFailed is returned by Health if a write to the store has failed. The server then writes nothing there
	// until it is started again, even if the disk has free space again: locks can neither be acquired nor released.
	// Acknowledged writes are kept.
	ErrStoreFailed = errors.New("embedded: store can't be written")

	// ErrStoreGone is returned by Health if files of the store were removed or replaced while the server runs. The
	// server continues for a while with its open files, but another server can be started on the same path, and
	// acknowledged writes are lost with the process. Shut it down, and let no other server grant locks before the
	// leases of its clients have ended.
	ErrStoreGone = errors.New("embedded: files of the store were removed or replaced")

	// ErrCredentials is returned by Connect in two cases. The server's accounts are those of a configuration file or an
	// operator, and it does not know the caller's account. Or the file has a user for websocket or mqtt only, and the
	// server then accepts no other user. Pass nats options with credentials to Connect, such as nats.UserInfo or
	// nats.UserCredentials.
	ErrCredentials = errors.New("embedded: the connection needs credentials")

	// ErrReload is returned by Reload if a change, such as another address or store, is not possible while the server
	// runs. The server continues with its old settings; restart it for the change.
	ErrReload = errors.New("embedded: change needs a restart")

	// ErrStopped is returned by Connect, Reload and Health after Shutdown was called. Start a new server on the same
	// store directory.
	ErrStopped = errors.New("embedded: server is stopped")
)

// invalid returns ErrInvalidOption with the problem and what to do.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalidOption, fmt.Errorf(format, args...))
}

// StoreInUseError tells which server uses the store directory. errors.Is with ErrStoreInUse is true for it.
type StoreInUseError struct {
	// Dir is the store directory as an absolute path.
	Dir string
	// PID is the process id of the owner, or 0 if it is unknown.
	PID int
	// URL is the client URL of the owner. It is empty if the owner has no listener, is still starting, or is unknown.
	URL string
}

func (e *StoreInUseError) Error() string {
	msg := fmt.Sprintf("%v: %s", ErrStoreInUse, e.Dir)
	if e.PID != 0 {
		msg += fmt.Sprintf(" is open in process %d", e.PID)
	}
	if e.URL != "" {
		return msg + fmt.Sprintf("; connect to %s, or use another directory", e.URL)
	}
	return msg + "; stop that server, or use another directory"
}

func (e *StoreInUseError) Unwrap() error { return ErrStoreInUse }

// OpenListenerError is returned by Start for a listener that other hosts can reach and that does not authenticate.
// errors.Is with ErrInvalidOption is true for it.
type OpenListenerError struct {
	// Listener is "client" or "cluster". With a configuration file it can also be "websocket", "mqtt", "leafnodes",
	// "gateway" or "profiling".
	Listener string
	// Addr is its address, host:port.
	Addr string
	// File is the configuration file; empty without one.
	File string
	// Reason is the setting that admits clients without credentials although there are users, for example
	// "no_auth_user". It is empty if there are no users.
	Reason string
}

func (e *OpenListenerError) Error() string {
	what, how := "WithListen", "add WithUser, WithToken, WithNKey or WithClientCA"
	switch {
	case e.Listener == "profiling":
		what, how = e.File+": "+e.Listener, "take prof_port out"
	case e.File != "" && e.Listener == "client":
		what, how = e.File, "add authorization or accounts, or tls with verify and ca_file"
	case e.File != "":
		what, how = e.File+": "+e.Listener, "add authorization, or tls with verify and ca_file, to it"
	case e.Listener == "cluster":
		what, how = "WithCluster", "add WithClusterAuth or WithClusterTLS"
	}
	reason := ""
	if e.Reason != "" {
		reason = " (" + e.Reason + ")"
	}
	return fmt.Sprintf("%v: %s: %s is not a loopback address, and nobody is asked who they are%s; "+
		"%s, listen on 127.0.0.1, or add WithAllowNonLoopback if everybody who can reach it may use it", ErrInvalidOption, what, e.Addr, reason, how)
}

func (e *OpenListenerError) Unwrap() error { return ErrInvalidOption }
