"""The data sets that come with mmfm, and the commands that write shards."""
