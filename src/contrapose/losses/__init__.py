from contrapose.losses.softmax import clip as clip
from contrapose.losses.softmax import dcl as dcl
from contrapose.losses.softmax import hard as hard
from contrapose.losses.softmax import info_nce as info_nce
from contrapose.losses.softmax import nt_xent as nt_xent
from contrapose.losses.softmax import supcon as supcon
from contrapose.losses.softmax import supcon_in as supcon_in
