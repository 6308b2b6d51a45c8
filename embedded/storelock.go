package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"os"
	"path/filepath"
)

const (
	lockFileName  = "lockfabric.lock"
	ownerFileName = "lockfabric.owner"
)

// errLocked is what lockFile returns when somebody else has the lock.
var errLocked = errors.New("locked")

// storeLock keeps a store directory to one server. The lock is the operating
// system's on the lock file; the owner file beside it only serves the error
// message of whoever comes second. The lock file is never removed: a process
// that waits with the old file open would else lock a name that is gone.
type storeLock struct {
	dir  string
	file *os.File
}

// owner is the content of the owner file.
type owner struct {
	PID int    `json:"pid"`
	URL string `json:"url,omitempty"`
}

func acquireStoreLock(dir string) (*storeLock, error) {
	f, err := os.OpenFile(filepath.Join(dir, lockFileName), os.O_CREATE|os.O_RDWR, 0o600)
	if err != nil {
		return nil, fmt.Errorf("%w: %w", ErrStartFailed, err)
	}
	if err := lockFile(f); err != nil {
		_ = f.Close()
		if errors.Is(err, errLocked) {
			return nil, storeInUse(dir)
		}
		return nil, fmt.Errorf("%w: can't lock %s: %w", ErrStartFailed, f.Name(), err)
	}
	l := &storeLock{dir: dir, file: f}
	// At once, so that what an owner that crashed left behind isn't reported.
	l.setOwner("")
	return l, nil
}

// setOwner is best effort: the file is a hint for people.
func (l *storeLock) setOwner(url string) {
	data, err := json.Marshal(owner{PID: os.Getpid(), URL: url})
	if err != nil {
		return
	}
	path := filepath.Join(l.dir, ownerFileName)
	tmp := path + ".new"
	if os.WriteFile(tmp, append(data, '\n'), 0o600) == nil {
		_ = os.Rename(tmp, path)
	}
}

func (l *storeLock) release() error {
	_ = os.Remove(filepath.Join(l.dir, ownerFileName))
	// Closing the only descriptor of the file releases the lock.
	if err := l.file.Close(); err != nil {
		return fmt.Errorf("embedded: releasing the store lock: %w", err)
	}
	return nil
}

func storeInUse(dir string) error {
	e := &StoreInUseError{Dir: dir}
	var o owner
	if data, err := os.ReadFile(filepath.Join(dir, ownerFileName)); err == nil && json.Unmarshal(data, &o) == nil {
		e.PID, e.URL = o.PID, o.URL
	}
	return e
}
