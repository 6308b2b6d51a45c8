package embedded

import (
	"encoding/json"
	"errors"
	"fmt"
	"io/fs"
	"os"
	"path/filepath"

	"github.com/gofrs/flock"
	natsserver "github.com/nats-io/nats-server/v2/server"
)

const (
	lockFileName  = "lockfabric.lock"
	ownerFileName = "lockfabric.owner"
)

// storeLock keeps a store directory to one server. The lock is the operating system's on the lock file, and ends with
// its process; the owner file beside it only serves the error message of whoever comes second. The lock file is never
// removed: a process that waits with the old file open would else lock a name that is gone.
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

// checkFiles fails with ErrStoreGone when the store on disk is not the one that the server has open: its directory
// was emptied, moved or replaced, or a stream's directory was. The server goes on with the files that it has open and
// notices nothing by itself, and another server can start on the path. What is inside of a file is not looked at.
func (s *Server) checkFiles() error {
	if err := s.lock.present(); err != nil {
		return err
	}
	state, err := s.srv.Jsz(&natsserver.JSzOptions{Accounts: true, Streams: true, Config: true})
	if err != nil {
		return nil //nolint:nilerr // no JetStream any more, which Healthz tells
	}
	for _, account := range state.AccountDetails {
		for _, stream := range account.Streams {
			if stream.Config == nil || stream.Config.Storage != natsserver.FileStorage {
				continue
			}
			dir := filepath.Join(state.Config.StoreDir, account.Id, "streams", stream.Name)
			if err := checkStream(dir, stream.State.Msgs > 0); err != nil {
				return err
			}
		}
	}
	return nil
}

func checkStream(dir string, messages bool) error {
	if _, err := os.Stat(filepath.Join(dir, natsserver.JetStreamMetaFile)); err != nil {
		return gone(err)
	}
	if !messages {
		return nil
	}
	blocks, err := filepath.Glob(filepath.Join(dir, "msgs", "*.blk"))
	if err == nil && len(blocks) == 0 {
		return gone(fmt.Errorf("%s has no messages any more: %w", dir, fs.ErrNotExist))
	}
	return nil
}

// present fails when the lock file is not at its path any more.
func (l *storeLock) present() error {
	ours, err := l.file.Stat()
	if err != nil {
		return nil //nolint:nilerr // released by Shutdown
	}
	there, err := os.Stat(l.file.Path())
	switch {
	case err != nil:
		return gone(err)
	case !os.SameFile(ours, there):
		return fmt.Errorf("%w: %s is another file", ErrStoreGone, l.file)
	}
	return nil
}

// gone takes what is not there for removed. That a file can't be looked at for
// another reason, such as too many open ones, says nothing.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrStoreGone, err)
	}
	return nil
}
