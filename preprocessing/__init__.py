"""From a user's files to prepared data sets; installed as `adaptmedseg.preprocessing`."""
