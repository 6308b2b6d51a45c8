package embedded

import (
	"errors"
	"fmt"
)

var (
	// ErrInvalidOption is returned by Start and StartCluster when an option, or
	// a combination of options, makes no sense. Nothing has been started and
	// nothing was written; the message names the option and says what to do.
	ErrInvalidOption = errors.New("embedded: invalid option")

	// ErrStoreInUse is returned by Start when another server, in this process or
	// in another one, has the store directory open. Use another directory, stop
	// that server, or connect to it instead. errors.As with *StoreInUseError
	// tells which server it is.
	ErrStoreInUse = errors.New("embedded: store directory is in use")

	// ErrStartFailed is returned by Start when the server gave up while starting:
	// the address is taken, or the store can't be read. The message carries the
	// server's reason. The store lock has been released.
	ErrStartFailed = errors.New("embedded: server failed to start")

	// ErrStopped is returned by Connect once Shutdown has begun. Start a new
	// server on the same store directory.
	ErrStopped = errors.New("embedded: server is stopped")

	// ErrNoSuchNode is returned by the methods of Cluster that take the index of
	// a node when there is none with that index. Indexes go from 0 to n-1.
	ErrNoSuchNode = errors.New("embedded: no such node")

	// ErrNoLeader is returned by Cluster.StepDown when no node leads the stream:
	// it does not exist or an election is under way. Wait with WaitStreamLeader.
	ErrNoLeader = errors.New("embedded: stream has no leader")
)

// StoreInUseError says which server has the store directory open. It matches
// ErrStoreInUse with errors.Is.
type StoreInUseError struct {
	// Dir is the store directory as an absolute path.
	Dir string
	// PID is the process id of the owner, 0 when it isn't known.
	PID int
	// URL is the client URL of the owner, empty when it has no listener, is
	// still starting, or isn't known.
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

// Is reports whether target is ErrStoreInUse.
func (e *StoreInUseError) Is(target error) bool { return target == ErrStoreInUse }
