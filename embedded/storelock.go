package embedded

import (
	"encoding/json"
	"fmt"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
)

const (
	lockFileName  = "lockfabric.lock"
	ownerFileName = "lockfabric.owner"
)

// storeLock keeps a store directory to one server. The lock is the operating
// system's on the lock file, and ends with its process; the owner file beside it only
// serves the error message of whoever comes second. The lock file is never removed: a
// process that waits with the old file open would else lock a name that is gone.
type storeLock struct {
	dir  string
	file *flock.Flock
}

type owner struct {
	PID int    `json:"pid"`
	URL string `json:"url,omitempty"`
}

func acquireStoreLock(dir string) (*storeLock, error) {
	f := flock.New(filepath.Join(dir, lockFileName), flock.SetFlag(os.O_CREATE|os.O_RDWR))
	switch locked, err := f.TryLock(); {
	case err != nil:
		return nil, fmt.Errorf("%w: can't lock %s: %w", ErrStartFailed, f, err)
	case !locked:
		return nil, storeInUse(dir)
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
	if err := l.file.Unlock(); err != nil {
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
