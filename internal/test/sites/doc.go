// Package sites has what tests that need servers share.
package sites
