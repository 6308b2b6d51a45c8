package embedded

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalidOption is returned by Start when an option, or a combination of options, makes no sense. Nothing has
	// been started and nothing was written; the message names the option and says what to do.
	ErrInvalidOption = errors.New("embedded: invalid option")

	// ErrStoreInUse is returned by Start when another server, in this process or in another one, has the store
	// directory open. Use another directory, stop that server, or connect to it instead. errors.As with
	// *StoreInUseError tells which server it is.
	ErrStoreInUse = errors.New("embedded: store directory is in use")

	// ErrStartFailed is returned by Start when the server gave up while starting: the address is taken, the store
	// can't be read, or its disk is full. The message carries the server's reason. The store lock has been released.
	ErrStartFailed = errors.New("embedded: server failed to start")

	// ErrStoreFailed is returned by Health when a write to the store has failed. The server then writes nothing there
	// until it is started again, also when there is room on the disk meanwhile: locks can be neither taken nor
	// released. What was acknowledged is kept.
	ErrStoreFailed = errors.New("embedded: store can't be written")

	// ErrStoreGone is returned by Health when files of the store were removed or replaced while the server runs. It
	// goes on for a while with the files that it has open, but another server can be started on the same path, and
	// what was acknowledged is lost with the process. Shut it down, and let no other one grant locks before the
	// leases of its clients have ended.
	ErrStoreGone = errors.New("embedded: files of the store were removed or replaced")

	// ErrCredentials is returned by Connect when the server's accounts are those of a configuration file, or of an
	// operator, and it does not know in which of them the caller belongs; or when the file has a user for websocket
	// or mqtt alone, beside which the server takes no other: pass nats options with credentials to Connect, such as
	// nats.UserInfo or nats.UserCredentials.
	ErrCredentials = errors.New("embedded: the connection needs credentials")

	// ErrReload is returned by Reload when the running server can't take over a change, such as another address or
	// store. It goes on as before; restart it for the change.
	ErrReload = errors.New("embedded: change needs a restart")

	// ErrStopped is returned by Connect, Reload and Health once Shutdown has begun.
	// Start a new server on the same store directory.
	ErrStopped = errors.New("embedded: server is stopped")
)

// invalid returns ErrInvalidOption with what is wrong and what to do.
func invalid(format string, args ...any) error {
	return fmt.Errorf("%w: %w", ErrInvalidOption, fmt.Errorf(format, args...))
}

// StoreInUseError says which server has the store directory open. It matches ErrStoreInUse with errors.Is.
type StoreInUseError struct {
	// Dir is the store directory as an absolute path.
	Dir string
	// PID is the process id of the owner, 0 when it isn't known.
	PID int
	// URL is the client URL of the owner, empty when it has no listener, is still starting, or isn't known.
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

// OpenListenerError is returned by Start for a listener that other hosts reach
// and that asks nobody who they are. It matches ErrInvalidOption with errors.Is.
type OpenListenerError struct {
	// Listener is "client" or "cluster", or with a configuration file another
	// of its listeners: "websocket", "mqtt", "leafnodes", "gateway", "profiling".
	Listener string
	// Addr is its address, host:port.
	Addr string
	// File is the configuration file, empty without one.
	File string
	// Reason is what lets strangers in although there are users, such as "no_auth_user"; empty where there are none.
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
