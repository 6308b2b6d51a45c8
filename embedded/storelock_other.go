//go:build !(darwin || dragonfly || freebsd || linux || netbsd || openbsd || windows)

package embedded

import (
	"errors"
	"os"
)

// lockFile refuses: without a lock that ends with its process, two servers
// could write one store, and that loses locks.
func lockFile(*os.File) error { return errors.ErrUnsupported }
