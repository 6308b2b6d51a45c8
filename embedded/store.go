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

// storeLock restricts a store directory to one server. The operating system's lock on the lock file ends with the
// process. The owner file is only for the error message of a second server. The lock file is never removed: otherwise a
// waiting process with the old file open could lock a file that no longer has a name.
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
		e := &StoreInUseError{Dir: dir}
		var o owner
		if data, err := os.ReadFile(filepath.Join(dir, ownerFileName)); err == nil && json.Unmarshal(data, &o) == nil {
			e.PID, e.URL = o.PID, o.URL
		}
		return nil, e
	}
	l := &storeLock{dir: dir, file: f}
	// This is done at once, so that the entry of an owner that crashed is not reported.
	l.setOwner("")
	return l, nil
}

// setOwner ignores errors, because the file is only a hint for people.
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

// checkFiles fails with ErrStoreGone if the store on disk is not the one that the server has open: its directory was
// emptied, moved or replaced, or the directory of a stream was. The server itself continues with its open files and
// does not notice this, and another server can start on the path. The contents of files are not checked.
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

// present fails if the lock file is no longer at its path.
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

// gone converts an absent file to ErrStoreGone. Other errors, such as too many open files, say nothing about the store.
func gone(err error) error {
	if errors.Is(err, fs.ErrNotExist) {
		return fmt.Errorf("%w: %w", ErrStoreGone, err)
	}
	return nil
}
